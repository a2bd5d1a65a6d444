//! The state of pruning between batches: how many units each block keeps, the constants of their weights, the history.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::{Arc, RwLock};

use ggml::Store;

use super::block::{Block, Masks};
use super::calibration::BlockStats;
use super::history::History;
use super::observed::Observed;
use super::options::{HistoryKind, Method, Options, Picker, Spread};
use super::plan::Plan;
use super::probe::ProbeShape;
use super::reduced::LeftOut;
use super::resident::{Resident, ResidentBlock};
use super::score::{self, BlockState, Formula};
use super::select;
use crate::error::Result;
use crate::weights::{Kernel, Layer, Placement};

/// Bytes of [`Pruning::identity`].
pub const IDENTITY_BYTES: usize = 120;

/// The state of pruning between batches.
#[derive(Debug)]
pub struct Pruning {
    /// What was asked for
    pub options: Options,
    /// Kept counts of prompts and of scored texts
    pub plan: Plan,
    /// Kept counts of answers, if they are pruned
    pub answer_plan: Option<Plan>,
    /// How scores are made
    pub formula: Formula,
    /// What the text made use of so far: masks for its answer are chosen by it
    pub observed: Observed,
    /// What tells the statistics that it began with from others; 0 if there were none
    pub statistics: u64,
    /// What blocks that a GPU computes have there, if any are
    resident: Option<Resident>,
    blocks: BTreeMap<Block, BlockState>,
}

impl Pruning {
    /// The state before the first batch. `constants` are of [`Formula::constants`] for each block that the plan probes; `stats` seed the
    /// history, if there is one, and are the prior of a plan that was made by them.
    pub fn new(
        options: Options,
        plan: Plan,
        answer_plan: Option<Plan>,
        constants: BTreeMap<Block, Vec<f32>>,
        stats: Option<&BTreeMap<Block, BlockStats>>,
    ) -> Pruning {
        let formula = Formula::of(&options);
        let history = |block: Block| {
            let stats = &stats?[&block];
            let means = match options.history {
                HistoryKind::None => return None,
                HistoryKind::Channel => &stats.energy,
                HistoryKind::Position => &stats.positions,
            };
            let history = History::new(block.channels(plan.dims()), means.clone());
            Some(Arc::new(RwLock::new(history)))
        };
        let has_prior = options.spread == Spread::Calibrated && formula == Formula::Normalised;
        let prior = |block: Block| stats.filter(|_| has_prior).map(|s| s[&block].normalised.clone().into());
        let state = |(block, constants): (Block, Vec<f32>)| {
            (block, BlockState { constants: constants.into(), prior: prior(block), history: history(block) })
        };
        let blocks = constants.into_iter().map(state).collect();
        Pruning {
            formula,
            blocks,
            observed: Observed::default(),
            statistics: 0,
            resident: None,
            plan,
            answer_plan,
            options,
        }
    }

    /// The masks of a method that never looks at a batch, and what stands in for what they leave out (FLAP). `n_tokens` is the length
    /// of a window of the calibration.
    pub fn fixed(&mut self, stats: &BTreeMap<Block, BlockStats>, n_tokens: usize) -> (Masks, LeftOut) {
        let as_coded = self.options.method == Method::FlapAsCoded;
        let energy = |s: &BlockStats| match self.formula {
            Formula::Flap if as_coded => s.variance_as_coded.clone(),
            Formula::Flap => s.variance.clone(),
            _ => s.energy.clone(),
        };
        let energies: BTreeMap<Block, Vec<f32>> = self.plan.blocks().map(|b| (b, energy(&stats[&b]))).collect();
        if self.formula == Formula::Flap {
            let of_channels = |(&block, energy): (&Block, &Vec<f32>)| {
                (block, self.formula.scores(energy, &self.blocks[&block].constants, 1))
            };
            let scores: Vec<(Block, Vec<f32>)> = energies.iter().map(of_channels).collect();
            let shares = score::flap_shares(self.plan.dims(), self.plan.ratio(), n_tokens, &scores);
            self.plan.set_shares(shares);
        }
        let mut masks = Masks::new();
        let mut left_out = LeftOut::new();
        for (block, energy) in energies {
            let Some(n) = self.plan.kept(block) else { continue };
            let width = block.width(self.plan.dims());
            let scores = self.formula.scores(&energy, &self.blocks[&block].constants, width);
            let kept = select::highest(&scores, n);
            if self.formula == Formula::Flap {
                let stats = &stats[&block];
                let mut mean = if as_coded { stats.mean_as_coded.clone() } else { stats.mean.clone() };
                kept.iter().for_each(|k| mean[k * width..(k + 1) * width].fill(0.0));
                left_out.insert(block, mean);
            }
            masks.insert(block, kept.into_iter().map(|k| k as i32).collect());
        }
        (masks, left_out)
    }

    /// What the results depend on, in a fixed order, little-endian: prompt caches are told apart by it. Method, picker, metric and
    /// history by number (u32 each); ratio, shares of tokens and of samples, momentum, the guard's divergence (f64 each); skipped layers, multiple, whether
    /// attention stays whole, whether means stand in for what is left out, the shortest piece (all ones if it is measured), the statistics, and the kept counts of prompts and of
    /// answers, as [`Plan::checksum`] (u64 each).
    pub fn identity(&self) -> [u8; IDENTITY_BYTES] {
        let o = &self.options;
        let kinds = [o.method.number(), o.picker.number(), o.metric.number(), o.history.number()];
        let shares = [o.ratio, o.tokens, o.samples, o.momentum, o.guard.unwrap_or(0.0)];
        let least = o.min_tokens.map_or(u64::MAX, |n| n as u64);
        let plans = [Some(&self.plan), self.answer_plan.as_ref()].map(|p| p.map_or(0, Plan::checksum));
        let flags = [o.mlp_only, self.fills_in()].map(u64::from);
        let numbers =
            [o.skip as u64, o.multiple as u64, flags[0], flags[1], least, self.statistics, plans[0], plans[1]];
        let mut bytes = Vec::with_capacity(IDENTITY_BYTES);
        kinds.iter().for_each(|n| bytes.extend(n.to_le_bytes()));
        shares.iter().for_each(|x| bytes.extend(x.to_le_bytes()));
        numbers.iter().for_each(|n| bytes.extend(n.to_le_bytes()));
        bytes.try_into().expect("four words, five floats and eight numbers")
    }

    /// Whether answers run on a part of the block.
    pub fn answers_keep(&self, block: Block) -> bool {
        self.answer_plan.as_ref().is_some_and(|plan| plan.kept(block).is_some())
    }

    /// The numbers of a pruned block.
    pub fn block(&self, block: Block) -> &BlockState {
        &self.blocks[&block]
    }

    /// Brings what the stages need of those of the `layers` that a GPU computes to where they lie, on `n_threads` threads.
    /// [`crate::error::Kind::Memory`] if it does not fit.
    pub fn reside(&mut self, layers: &[Layer], placement: &Placement, n_threads: usize) -> Result<()> {
        let is_stock = |&b: &Block| b.last(layers).weight.kernel == Kernel::Stock;
        let is_pruned = |&b: &Block| self.plan.kept(b).is_some_and(|n| n > 0) || self.blocks.contains_key(&b);
        let blocks: Vec<Block> = self.plan.blocks().filter(is_stock).filter(is_pruned).collect();
        if !blocks.is_empty() {
            let blocks = blocks.into_iter().map(|b| (b, b.last(layers), self.blocks.get(&b)));
            self.resident = Some(Resident::new(placement, blocks, n_threads)?);
        }
        Ok(())
    }

    /// What a block that a GPU computes has there, and where: `None` if the CPU computes it.
    pub fn resident(&self, block: Block) -> Option<(&Rc<Store>, &ResidentBlock)> {
        let resident = self.resident.as_ref()?;
        Some((resident.store(), resident.block(block)?))
    }

    /// Rows of the probe of a batch of `n_seq` samples of `n_each` tokens.
    pub fn probe(&self, n_seq: usize, n_each: usize) -> ProbeShape {
        ProbeShape::of(&self.options, n_seq, n_each)
    }

    /// Whether the mean over the probe stands in for an MLP's channels that are left out. The paper has nothing there.
    pub fn fills_in(&self) -> bool {
        self.options.spread != Spread::Paper
    }

    /// Whether all rows of the batch are the probe.
    pub fn probes_all(&self) -> bool {
        self.options.method == Method::FullBatch
    }

    /// Whether the probe's rows are chosen in the graph.
    pub fn picks_by_residual(&self) -> bool {
        !self.probes_all() && self.options.picker == Picker::Residual
    }

    /// Whether the history is to be told of each batch's energy, and whether by position.
    pub fn keeps_history(&self) -> Option<bool> {
        let changes = self.options.history != HistoryKind::None && self.options.momentum < 1.0;
        changes.then_some(self.options.history == HistoryKind::Position)
    }

    /// Tells the history what a batch's full inference computed; `first` is the first position.
    pub fn update_history(&self, block: Block, first: usize, kept: &[i32], energy: &[f32]) {
        let Some(history) = &self.blocks[&block].history else { return };
        // A history that tells no positions apart has one row.
        let first = if self.options.history == HistoryKind::Position { first } else { 0 };
        let width = block.width(self.plan.dims());
        let channels: Vec<usize> = kept.iter().flat_map(|&u| u as usize * width..(u as usize + 1) * width).collect();
        let mut history = history.write().expect("no reader panics");
        history.update(self.options.momentum as f32, first, &channels, energy);
        if let Some(resident) = &self.resident {
            let n = block.channels(self.plan.dims());
            let changed = first * n..first * n + energy.len() / channels.len() * n;
            resident.write_history(block, changed.start, &history.means()[changed]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prune::{Metric, block::BlockKind};
    use crate::weights::{Dims, LayerDims};

    fn state(options: Options) -> Pruning {
        let layer = LayerDims::gated([4, 4, 16], 256);
        let dims = Dims::alike(8, 64, layer);
        let plan = Plan::new(&options, None, dims.clone()).unwrap();
        let answers = Options { ratio: options.answer, ..Options::paper(0.0) };
        let answer_plan = (options.answer > 0.0).then(|| Plan::new(&answers, None, dims).unwrap());
        Pruning::new(options, plan, answer_plan, BTreeMap::new(), None)
    }

    #[test]
    fn every_setting_is_in_the_identity() {
        let base = || Options { spread: Spread::Uniform, ..Options::new(0.2) };
        let others = [
            Options { ratio: 0.3, ..base() },
            Options { spread: Spread::Depth, ..base() },
            Options { spread: Spread::Paper, ..base() },
            Options { guard: Some(0.01), ..base() },
            Options { answer: 0.2, ..base() },
            Options { answer: 0.4, ..base() },
            Options { method: Method::FullBatch, ..base() },
            Options { picker: Picker::Residual, ..base() },
            Options { tokens: 0.2, ..base() },
            Options { samples: 0.5, ..base() },
            Options { metric: Metric::Ppsp, ..base() },
            Options { skip: 2, ..base() },
            Options { mlp_only: true, ..base() },
            Options { history: HistoryKind::Channel, ..base() },
            Options { momentum: 0.5, ..base() },
            Options { multiple: 32, ..base() },
            Options { min_tokens: Some(9), ..base() },
        ];
        let mut all: Vec<[u8; IDENTITY_BYTES]> = others.into_iter().map(|o| state(o).identity()).collect();
        all.push(state(base()).identity());
        let mut with_statistics = state(base());
        with_statistics.statistics = 7;
        all.push(with_statistics.identity());
        let mut with_counts = state(base());
        with_counts.plan.set_counts([(Block { il: 5, kind: BlockKind::Mlp }, 64)].into());
        all.push(with_counts.identity());
        let n = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), n);
        assert_eq!(state(base()).identity(), state(base()).identity());
    }
}
