/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Merge two filters, the plan's and the VMM's. The merged filter denies whatever either of them
 * denies. Where a range is for both reads and writes, and they differ once the filters are merged, it
 * becomes two ranges. If there is no room for that, it denies both, and the exits that nobody wanted
 * go back to KVM when they come.
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

/* A range of the filter `own`, which has to deny in it what `other` denies, too. */
struct part {
	const struct kvm_msr_filter_range *range;
	const struct kvm_msr_filter *own, *other;
};

static int denied(const struct part *part, uint32_t i, int op)
{
	uint32_t index = part->range->base + i;

	return part->range->flags & flag_of[op] &&
	       (kvmsr_denies(part->own, index, op) || kvmsr_denies(part->other, index, op));
}

static uint32_t count_of(const struct part *part)
{
	return part->range->nmsrs > 0x3000 ? 0x3000 : part->range->nmsrs;
}

/* Does one bit of the range have to serve reads and writes that differ? */
static int differs(const struct part *part)
{
	if (part->range->flags != (KVM_MSR_FILTER_READ | KVM_MSR_FILTER_WRITE))
		return 0;
	for (uint32_t i = 0; i < count_of(part); i++)
		if (denied(part, i, 0) != denied(part, i, 1))
			return 1;
	return 0;
}

/* Add a part as range N, for the directions in FLAGS. */
static void add(struct kvmsr_merged *merged, int n, const struct part *part, uint32_t flags)
{
	uint8_t *bitmap = merged->bitmaps[n];

	memset(bitmap, 0, KVMSR_MAX_BITMAP);
	for (uint32_t i = 0; i < count_of(part); i++)
		if (!(flags & flag_of[0] && denied(part, i, 0)) &&
		    !(flags & flag_of[1] && denied(part, i, 1)))
			bitmap[i / 8] |= 1 << i % 8;
	merged->filter.ranges[n] = (struct kvm_msr_filter_range){
		.flags = flags, .base = part->range->base, .nmsrs = count_of(part), .bitmap = bitmap,
	};
}

/* Append the ranges of OWN to PARTS. Return how many there are then. */
static int append(struct part *parts, int n, const struct kvm_msr_filter *own,
		  const struct kvm_msr_filter *other)
{
	for (int i = 0; i < KVM_MSR_FILTER_MAX_RANGES; i++)
		if (own->ranges[i].nmsrs)
			parts[n++] = (struct part){ &own->ranges[i], own, other };
	return n;
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
	struct part parts[2 * KVM_MSR_FILTER_MAX_RANGES];
	int n_parts = 0, n = 0;

	memset(&merged->filter, 0, sizeof(merged->filter));
	if (plan_denies || wish_denies)
		merged->filter.flags = KVM_MSR_FILTER_DEFAULT_DENY;
	if (!plan_denies)
		n_parts = append(parts, n_parts, wish, plan);
	if (!wish_denies || plan_denies)
		n_parts = append(parts, n_parts, plan, wish);
	int spare = KVM_MSR_FILTER_MAX_RANGES - n_parts;

	for (int i = 0; i < n_parts && n < KVM_MSR_FILTER_MAX_RANGES; i++) {
		if (spare > 0 && differs(&parts[i])) {
			spare--;
			add(merged, n++, &parts[i], KVM_MSR_FILTER_READ);
			add(merged, n++, &parts[i], KVM_MSR_FILTER_WRITE);
		} else {
			add(merged, n++, &parts[i], parts[i].range->flags);
		}
	}
	return spare < 0 ? -spare : 0;
}
