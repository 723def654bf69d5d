/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Merge two filters, the plan's and the VMM's. The merged filter denies whatever either of them
 * denies. If one bit has to serve both reads and writes and they differ, it denies both; the exits
 * that nobody wanted go back to KVM when they come.
 */
#include <string.h>

#include "merge.h"

static const uint32_t flag_of[2] = { KVM_MSR_FILTER_READ, KVM_MSR_FILTER_WRITE };

/* Does KVM deny OP on MSR INDEX under FILTER? (kvm_msr_allowed() in arch/x86/kvm/x86.c) */
int kvmsr_denies(const struct kvm_msr_filter *filter, uint32_t index, int op)
{
	for (int i = 0; i < KVM_MSR_FILTER_MAX_RANGES; i++) {
		const struct kvm_msr_filter_range *r = &filter->ranges[i];
		uint32_t bit = index - r->base;

		if (r->nmsrs && r->flags & flag_of[op] && index >= r->base && bit < r->nmsrs)
			return !(r->bitmap[bit / 8] >> bit % 8 & 1);
	}
	return filter->flags & KVM_MSR_FILTER_DEFAULT_DENY;
}

/* Set *filter to the plan's filter. Its bitmaps stay in TABLE. */
void kvmsr_plan_filter(const struct kvmsr_table *table, struct kvm_msr_filter *filter)
{
	memset(filter, 0, sizeof(*filter));
	filter->flags = table->default_deny ? KVM_MSR_FILTER_DEFAULT_DENY : 0;
	for (uint32_t i = 0; i < table->n_ranges; i++) {
		const struct kvmsr_range *r = &table->ranges[i];

		filter->ranges[i] = (struct kvm_msr_filter_range){
			.flags = r->flags, .base = r->base, .nmsrs = r->count,
			.bitmap = (uint8_t *)kvmsr_part(table, r->bitmap),
		};
	}
}

/* Add RANGE of the filter OWN as range N, and deny in it what OTHER denies, too. */
static void add(struct kvmsr_merged *merged, int n, const struct kvm_msr_filter_range *range,
		const struct kvm_msr_filter *own, const struct kvm_msr_filter *other)
{
	uint8_t *bitmap = merged->bitmaps[n];
	uint32_t count = range->nmsrs > 0x3000 ? 0x3000 : range->nmsrs;

	memset(bitmap, 0, KVMSR_MAX_BITMAP);
	for (uint32_t i = 0; i < count; i++) {
		int denied = 0;

		for (int op = 0; op < 2; op++)
			if (range->flags & flag_of[op])
				denied |= kvmsr_denies(own, range->base + i, op) ||
					  kvmsr_denies(other, range->base + i, op);
		if (!denied)
			bitmap[i / 8] |= 1 << i % 8;
	}
	merged->filter.ranges[n] = (struct kvm_msr_filter_range){
		.flags = range->flags, .base = range->base, .nmsrs = count, .bitmap = bitmap,
	};
}

/*
 * Merge the plan's filter and the VMM's. If one of them denies by default, everything outside its
 * ranges is denied whatever the other says, so only its own ranges are needed. Otherwise all ranges
 * are, and if there are too many, the VMM's take precedence. Return how many of the plan's ranges
 * found no room.
 */
uint32_t kvmsr_merge(const struct kvm_msr_filter *plan, const struct kvm_msr_filter *wish,
		     struct kvmsr_merged *merged)
{
	int plan_denies = plan->flags & KVM_MSR_FILTER_DEFAULT_DENY;
	int wish_denies = wish->flags & KVM_MSR_FILTER_DEFAULT_DENY;
	uint32_t lost = 0;
	int n = 0;

	memset(&merged->filter, 0, sizeof(merged->filter));
	if (plan_denies || wish_denies)
		merged->filter.flags = KVM_MSR_FILTER_DEFAULT_DENY;
	if (!plan_denies)
		for (int i = 0; i < KVM_MSR_FILTER_MAX_RANGES; i++)
			if (wish->ranges[i].nmsrs)
				add(merged, n++, &wish->ranges[i], wish, plan);
	if (wish_denies && !plan_denies)
		return 0;
	for (int i = 0; i < KVM_MSR_FILTER_MAX_RANGES; i++) {
		if (!plan->ranges[i].nmsrs)
			continue;
		if (n < KVM_MSR_FILTER_MAX_RANGES)
			add(merged, n++, &plan->ranges[i], plan, wish);
		else
			lost++;
	}
	return lost;
}
