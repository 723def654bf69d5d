/* SPDX-License-Identifier: Apache-2.0 */
/* One filter that serves both the plan and the VMM. */
#ifndef KVMSR_MERGE_H
#define KVMSR_MERGE_H

#include <linux/kvm.h>

#include "table.h"

#define KVMSR_MAX_BITMAP (0x3000 / 8)

/* The MSR exits that the VMM itself asked for. */
struct kvmsr_wish {
	uint32_t reasons; /* for KVM_CAP_X86_USER_SPACE_MSR */
	struct kvm_msr_filter filter;
	uint8_t bitmaps[KVMSR_MAX_RANGES][KVMSR_MAX_BITMAP];
};

/* A filter and its bitmaps. */
struct kvmsr_merged {
	struct kvm_msr_filter filter;
	uint8_t bitmaps[KVMSR_MAX_RANGES][KVMSR_MAX_BITMAP];
};

int kvmsr_denies(const struct kvm_msr_filter *filter, uint32_t index, int op);
void kvmsr_plan_filter(const struct kvmsr_table *table, struct kvm_msr_filter *filter);
uint32_t kvmsr_merge(const struct kvm_msr_filter *plan, const struct kvm_msr_filter *wish,
		     struct kvmsr_merged *merged);

#endif
