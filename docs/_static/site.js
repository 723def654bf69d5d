// SPDX-License-Identifier: Apache-2.0
"use strict";

/* Give keyboards a way to scroll what is too wide. */
function reachable() {
  for (const part of document.querySelectorAll(".table-wrapper, article pre")) {
    if (part.scrollWidth > part.clientWidth) part.tabIndex = 0;
    else part.removeAttribute("tabindex");
  }
}

/* Tell the two sidebars apart for who has the page read aloud. */
function named() {
  document.querySelector(".sidebar-drawer")?.setAttribute("aria-label", "All pages");
  document.querySelector(".toc-drawer")?.setAttribute("aria-label", "This page");
}

document.addEventListener("DOMContentLoaded", named);
document.addEventListener("DOMContentLoaded", reachable);
window.addEventListener("load", reachable);
window.addEventListener("resize", reachable);
