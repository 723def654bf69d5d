// SPDX-License-Identifier: Apache-2.0
"use strict";

/* Give keyboards a way to scroll what is too wide. */
function reachable() {
  for (const part of document.querySelectorAll(".table-wrapper, article pre")) {
    if (part.scrollWidth > part.clientWidth) part.tabIndex = 0;
    else part.removeAttribute("tabindex");
  }
}

document.addEventListener("DOMContentLoaded", reachable);
window.addEventListener("load", reachable);
window.addEventListener("resize", reachable);
