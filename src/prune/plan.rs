//! How many heads and channels each block keeps.

use std::collections::BTreeMap;

use xxhash_rust::xxh3::xxh3_64;

use super::block::{Block, BlockKind, all_blocks};
use super::budget::{self, Shares};
use super::options::{Options, Spread};
use crate::error::{Error, Result};
use crate::weights::Dims;

/// Gathering a block's kept weights for a batch takes as long as so many tokens take in the whole block: 45 in an MLP of SmolLM2 on an Intel
/// Xeon with AMX, where products are fast, and 15 in one of 7B width on a Zen 4.
const GATHERING: f64 = 45.0;

/// Kept counts by block.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    dims: Dims,
    mlp_only: bool,
    skip: usize,
    multiple: usize,
    /// Share to leave out of each block that is pruned, corrected for those that are not.
    ratio: f64,
    /// The same by block, where blocks differ: attention and MLP of each layer.
    shares: Option<Shares>,
    /// Whether a share of all units drops the block. (FLAP's keeps some, as there is no tensor without any.)
    drops: bool,
    /// Kept counts, where these are given (a replay).
    counts: Option<BTreeMap<Block, usize>>,
}

impl Plan {
    /// What the options ask for; `shares` is the budget, where they do not say how to make it.
    /// [`crate::error::Kind::Usage`] if nothing would be left.
    pub fn new(options: &Options, shares: Option<Shares>, dims: Dims) -> Result<Plan> {
        if options.skip >= dims.n_layer() {
            return Err(Error::usage(format!(
                "--prune-skip {} leaves nothing to prune: the model has {} layers",
                options.skip,
                dims.n_layer()
            )));
        }
        // MLPs of experts have no channels to leave out.
        let least = dims.layers.iter().map(|l| l.n_ff).filter(|&n| n > 0).min();
        if least.is_none() && options.mlp_only {
            return Err(Error::usage("--prune-mlp-only leaves nothing to prune: the model's MLPs are ones of experts"));
        }
        if let Some(n_ff) = least.filter(|&n| options.multiple > n) {
            return Err(Error::usage(format!(
                "--prune-multiple {} is more than the {n_ff} channels of an MLP",
                options.multiple
            )));
        }
        let shares = match (&options.spread, shares) {
            (Spread::Paper, _) => return Plan::paper(options, dims),
            (_, Some(shares)) => shares,
            (Spread::Uniform, None) => budget::uniform(options.ratio, options.skip, &dims),
            (Spread::Depth, None) => budget::depth(options.ratio, options.skip, &dims),
            (Spread::File(_) | Spread::Calibrated, None) => panic!("whoever reads the file makes the budget"),
        };
        if budget::saved(&shares, &dims) < options.ratio - 1e-6 {
            let whole = if least.is_some() { "" } else { ", and experts run whole" };
            return Err(Error::usage(format!(
                "--prune {} is more than can be left out, which is {:.2}: keys and values are always made{whole} (prune less, or \
                 skip fewer than {} layers: --prune-skip)",
                options.ratio,
                budget::saved(&shares, &dims),
                options.skip
            )));
        }
        Ok(Plan {
            dims,
            mlp_only: false,
            skip: 0,
            multiple: options.multiple,
            ratio: options.ratio,
            shares: Some(shares),
            drops: true,
            counts: None,
        })
    }

    /// The paper's rule: the ratio counts over all layers, so that the pruned ones lose more: `L / (L - skip) * ratio`, to
    /// two decimals.
    fn paper(options: &Options, dims: Dims) -> Result<Plan> {
        let n_layer = dims.n_layer();
        let skip = options.skip;
        let ratio = two_decimals(n_layer as f64 / (n_layer - skip) as f64 * options.ratio);
        let plan = Plan {
            dims,
            mlp_only: options.mlp_only,
            skip,
            multiple: options.multiple,
            ratio,
            shares: None,
            drops: false,
            counts: None,
        };
        if ratio >= 1.0 {
            return Err(Error::usage(format!(
                "--prune {} over all {n_layer} layers is more than the {} that are pruned have: prune less, or skip fewer than \
                 {skip} layers (--prune-skip)",
                options.ratio,
                n_layer - skip
            )));
        }
        Ok(plan)
    }

    /// The model's shape.
    pub fn dims(&self) -> &Dims {
        &self.dims
    }

    /// Share to leave out of each pruned block.
    pub fn ratio(&self) -> f64 {
        self.ratio
    }

    /// The blocks that are pruned.
    pub fn blocks(&self) -> impl Iterator<Item = Block> + use<> {
        let &Plan { skip, mlp_only, .. } = self;
        all_blocks(&self.dims).filter(move |b| b.il >= skip && !(mlp_only && b.kind == BlockKind::Attn))
    }

    /// The blocks that are dropped.
    pub fn dropped(&self) -> impl Iterator<Item = Block> {
        all_blocks(&self.dims).filter(|&b| self.kept(b) == Some(0))
    }

    /// Gives each block a share of its own.
    pub fn set_shares(&mut self, shares: Vec<[f64; 2]>) {
        self.shares = Some(shares);
    }

    /// Gives each block its count; blocks without one stay whole.
    pub fn set_counts(&mut self, counts: BTreeMap<Block, usize>) {
        self.counts = Some(counts);
    }

    /// Units that a block keeps; `None` if it stays whole, 0 if it is dropped.
    pub fn kept(&self, block: Block) -> Option<usize> {
        if let Some(counts) = &self.counts {
            return counts.get(&block).copied();
        }
        let Block { il, kind } = block;
        let units = block.units(&self.dims);
        if units == 0 || il < self.skip || (self.mlp_only && kind == BlockKind::Attn) {
            return None;
        }
        let ratio = self.shares.as_ref().map_or(self.ratio, |s| s[il][kind as usize]);
        if self.drops && budget::is_all(ratio) {
            return Some(0);
        }
        if block.is_whole(&self.dims) {
            return None;
        }
        let pruned = (ratio * units as f64) as usize;
        let kept = match kind {
            BlockKind::Attn => units - pruned,
            // The paper rounds the number up; it cannot be more than there are.
            BlockKind::Mlp => (units - pruned).next_multiple_of(self.multiple).min(units),
        };
        let least = if kind == BlockKind::Attn { 1 } else { self.multiple.min(units) };
        Some(kept.max(least)).filter(|&k| k < units)
    }

    /// XXH3 of what each block keeps: units as u64, little-endian, all ones if it stays whole.
    pub fn checksum(&self) -> u64 {
        let kept = |block| self.kept(block).map_or(u64::MAX, |n| n as u64).to_le_bytes();
        xxh3_64(&all_blocks(&self.dims).flat_map(kept).collect::<Vec<u8>>())
    }

    /// From how many tokens of a prompt on it takes less time than reading it densely, of which `n_whole` are read whole in any case and a
    /// share `probe` of the others runs ahead; `None` if it never does. By multiplications of weights, on any machine: whether a prompt is
    /// pruned must not depend on what else the machine does.
    pub fn break_even(&self, probe: f64, n_whole: usize) -> Option<usize> {
        let mut all: f64 = self.dims.layers.iter().map(|l| l.n_expert_weights as f64).sum();
        let (mut saved, mut probed) = (0.0, 0.0);
        for block in all_blocks(&self.dims) {
            let units = block.units(&self.dims);
            let weights = |n: usize| block.weights(&self.dims, n, true) as f64;
            let kept = self.kept(block).unwrap_or(units);
            all += weights(units);
            // Of the last layer that makes keys and values dense reading makes no more than these, either, and nothing of those after it.
            if block.il + 1 < self.dims.n_read() {
                saved += weights(units) - weights(kept);
                probed += if (1..units).contains(&kept) { weights(units) - weights(0) } else { 0.0 };
            }
        }
        let gain = saved - probe * probed;
        // What is read whole runs on kept weights, too.
        let fixed = GATHERING * probed + n_whole as f64 * (all - saved);
        (gain > 0.0).then(|| n_whole + (fixed / gain).ceil().min(1e9) as usize)
    }

    /// Share of the weights of all blocks, those of a token's experts included, that is used; `whole_kv` counts keys and values of all heads.
    pub fn kept_share(&self, whole_kv: bool) -> f64 {
        let mut all: usize = self.dims.layers.iter().map(|l| l.n_expert_weights).sum();
        let mut used = all;
        for block in all_blocks(&self.dims) {
            let units = block.units(&self.dims);
            let kept = self.kept(block).unwrap_or(units);
            used += block.weights(&self.dims, kept, whole_kv);
            all += block.weights(&self.dims, units, whole_kv);
        }
        used as f64 / all as f64
    }
}

/// Rounded to two decimals, halves to even, as Python's `round` does.
fn two_decimals(x: f64) -> f64 {
    format!("{x:.2}").parse().expect("a number")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::LayerDims;

    fn dims(n_layer: usize, n_head: usize, n_embd: usize, n_ff: usize) -> Dims {
        let n_embd_head = n_embd / n_head;
        let layer = LayerDims::gated([n_head, n_head, n_embd_head], n_ff);
        Dims::alike(n_layer, n_embd, layer)
    }

    /// Kept heads and channels of a layer beyond the first three.
    fn kept(d: &Dims, ratio: f64) -> (usize, usize) {
        let plan = Plan::new(&Options::paper(ratio), None, d.clone()).unwrap();
        let block = |kind| plan.kept(Block { il: d.n_layer() - 1, kind }).unwrap();
        (block(BlockKind::Attn), block(BlockKind::Mlp))
    }

    #[test]
    fn counts_are_the_papers() {
        let llama_7b = dims(32, 32, 4096, 11008);
        assert_eq!([0.2, 0.4, 0.6].map(|r| kept(&llama_7b, r)), [(25, 8640), (18, 6208), (11, 3776)]);
        let llama_13b = dims(40, 40, 5120, 13824);
        assert_eq!([0.2, 0.4, 0.6].map(|r| kept(&llama_13b, r)), [(32, 10816), (23, 7936), (14, 4864)]);
        let llama_70b = dims(80, 64, 8192, 28672);
        assert_eq!([0.2, 0.4, 0.6].map(|r| kept(&llama_70b, r)), [(51, 22656), (38, 16640), (25, 10944)]);
    }

    #[test]
    fn skipped_layers_stay_whole_and_the_rest_makes_up_for_them() {
        let d = dims(32, 32, 4096, 11008);
        let mut options = Options::paper(0.4);
        let plan = Plan::new(&options, None, d.clone()).unwrap();
        assert_eq!(plan.kept(Block { il: 2, kind: BlockKind::Mlp }), None);
        assert_eq!(plan.blocks().count(), 29 * 2);
        assert!((plan.kept_share(false) - 0.6).abs() < 0.01, "{}", plan.kept_share(false));
        options.mlp_only = true;
        let plan = Plan::new(&options, None, d.clone()).unwrap();
        assert_eq!(plan.kept(Block { il: 3, kind: BlockKind::Attn }), None);
        assert_eq!(plan.blocks().count(), 29);
    }

    #[test]
    fn short_prompts_and_light_pruning_do_not_pay() {
        let d = dims(32, 32, 4096, 11008);
        let from =
            |ratio: f64, probe: f64| Plan::new(&Options::new(ratio), None, d.clone()).unwrap().break_even(probe, 36);
        let [little, some, much] = [0.1, 0.25, 0.5].map(|ratio| from(ratio, 0.1).unwrap());
        assert!(much < some && some < little && much > 100 && little < 10_000, "{little} {some} {much}");
        assert!(from(0.25, 0.2).unwrap() > some);
        assert_eq!(from(0.05, 1.0), None);
    }

    #[test]
    fn what_leaves_nothing_is_refused() {
        let d = dims(4, 4, 64, 128);
        let mut options = Options::paper(0.4);
        let plan = |options: &Options| Plan::new(options, None, d.clone());
        assert!(plan(&options).unwrap_err().to_string().contains("--prune-skip"));
        options.skip = 4;
        assert!(plan(&options).is_err());
        options.skip = 0;
        assert!(plan(&options).is_ok());
        options.multiple = 256;
        assert!(plan(&options).is_err());
    }

    #[test]
    fn of_experts_attention_alone_is_pruned() {
        let layer = LayerDims { n_expert_weights: 3 * 2 * 256 * 128, ..LayerDims::gated([8, 2, 32], 0) };
        let d = Dims::alike(6, 256, layer);
        for spread in [Spread::Uniform, Spread::Depth, Spread::Paper] {
            let plan = Plan::new(&Options { spread: spread.clone(), ..Options::new(0.15) }, None, d.clone()).unwrap();
            assert!(plan.blocks().all(|b| b.kind == BlockKind::Attn), "{spread:?}");
            assert!((0..6).all(|il| plan.kept(Block { il, kind: BlockKind::Mlp }).is_none()), "{spread:?}");
            let left_out = 1.0 - plan.kept_share(true);
            // The paper's ratio is one of each block.
            let expected = if spread == Spread::Paper { 0.04..0.05 } else { 0.12..0.17 };
            assert!(expected.contains(&left_out), "{spread:?}: {left_out}");
        }
        let refused = |o: Options| Plan::new(&o, None, d.clone()).unwrap_err().to_string();
        assert!(refused(Options { mlp_only: true, ..Options::paper(0.1) }).contains("experts"));
        assert!(refused(Options { spread: Spread::Uniform, ..Options::new(0.5) }).contains("experts run whole"));
    }
}
