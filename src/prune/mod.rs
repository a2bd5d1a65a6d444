//! The Probe Pruning pass, in the order of the paper's stages: plan, probe, history, score, select, reduce.
//!
//! Before a block of a layer runs on a batch, a few of the batch's rows run ahead through it with all its weights (the
//! probe); what they activate, fused with what earlier batches did, decides which heads or channels are kept; then the
//! batch runs on reduced tensors. All of that is one graph. This module makes the operations and keeps the state between
//! batches; it sees matrices and numbers, never a file.

pub mod history;
mod options;
pub mod plan;
pub mod probe;
pub mod record;
pub mod reduce;
pub mod score;
pub mod select;

use std::collections::BTreeMap;
use std::sync::{Arc, RwLock};

use ggml::{Builder, Slot, Tensor, Type};

use history::History;
pub use options::{HistoryKind, Method, Metric, Options, Picker};
use plan::{Block, Plan};
use probe::ProbeShape;
use score::Formula;

/// Kept units of each pruned block, ascending.
pub type Masks = BTreeMap<Block, Vec<i32>>;

/// What a graph does about pruning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Probes, and runs on what the probe chose.
    Probe,
    /// Runs on units that are given from outside for this batch.
    Given,
    /// Runs on reduced weights that were made before.
    Fixed,
    /// Runs whole, and notes what [`Pruning::observed`] collects.
    Observe,
    /// Runs whole, and notes moments and energies for a calibration.
    Calibrate,
}

/// What a graph notes about a block.
#[derive(Debug, Clone, Copy)]
pub struct BlockSlots {
    /// Which block
    pub block: Block,
    /// I32 `[n_kept]`: output of [`Mode::Probe`], input of [`Mode::Given`]
    pub kept: Option<Slot>,
    /// F32 `[1, n_units]`: scores, of [`Mode::Probe`]
    pub scores: Option<Slot>,
    /// F32 `[1, n_channels]`: energy of normalised states and the rows that it is a mean of
    pub observed: Option<(Slot, usize)>,
    /// F32 `[1, n_channels]` or `[n_channels, n_each]`: energy of the (kept) channels over the batch
    pub energy: Option<Slot>,
    /// F32 `[2, n_channels]`: mean and mean of squares
    pub moments: Option<Slot>,
}

impl BlockSlots {
    /// Nothing noted yet.
    pub fn new(block: Block) -> BlockSlots {
        BlockSlots { block, kept: None, scores: None, observed: None, energy: None, moments: None }
    }
}

/// A pruned block's numbers that do not change.
#[derive(Debug)]
struct BlockState {
    constants: Arc<[f32]>,
    history: Option<Arc<RwLock<History>>>,
}

/// Sums of energies of normalised states, by block (GRIFFIN's statistic): what decoding is frozen by.
#[derive(Debug, Default)]
pub struct Observed {
    rows: BTreeMap<Block, (f64, Vec<f64>)>,
}

impl Observed {
    /// Adds the mean over `n` rows.
    pub fn add(&mut self, block: Block, n: usize, mean: &[f32]) {
        let (rows, sums) = self.rows.entry(block).or_insert_with(|| (0.0, vec![0.0; mean.len()]));
        *rows += n as f64;
        sums.iter_mut().zip(mean).for_each(|(s, &m)| *s += f64::from(m) * n as f64);
    }

    /// Rows seen, of the block that saw most.
    pub fn n_rows(&self) -> f64 {
        self.rows.values().map(|r| r.0).fold(0.0, f64::max)
    }

    /// The units that these states make most use of; `None` before anything was observed.
    pub fn masks(&self, plan: &Plan) -> Option<Masks> {
        let mask = |block: Block| {
            let (rows, sums) = self.rows.get(&block)?;
            let width = plan.dims().width(block.kind);
            let energy = |c: &[f64]| (c.iter().sum::<f64>() / rows) as f32;
            let scores: Vec<f32> = sums.chunks_exact(width).map(energy).collect();
            let kept = select::highest(&scores, plan.kept(block)?);
            Some((block, kept.into_iter().map(|k| k as i32).collect()))
        };
        Some(plan.blocks().filter_map(mask).collect::<Masks>()).filter(|m| !m.is_empty())
    }
}

/// Statistics of a calibration that a method starts from, for one block; see `pp-run calibrate`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct BlockStats {
    /// Mean of squares of each channel
    pub energy: Vec<f32>,
    /// Mean of each channel
    pub mean: Vec<f32>,
    /// Fluctuation of each channel around its mean
    pub variance: Vec<f32>,
    /// The mean as Probe Pruning's code has it: divided by the batch size once more
    pub mean_as_coded: Vec<f32>,
    /// The fluctuation around that
    pub variance_as_coded: Vec<f32>,
    /// Mean of squares by position, `[n_pos, n_channels]`; empty if left out
    pub positions: Vec<f32>,
}

/// The state of pruning between batches.
#[derive(Debug)]
pub struct Pruning {
    /// What was asked for
    pub options: Options,
    /// Kept counts
    pub plan: Plan,
    formula: Formula,
    blocks: BTreeMap<Block, BlockState>,
    /// What decoding is frozen by
    pub observed: Observed,
}

impl Pruning {
    /// The state before the first batch. `constants` are of [`Formula::constants`] for each block of the plan; `stats` seed
    /// the history, if there is one.
    pub fn new(
        options: Options,
        plan: Plan,
        mut constants: BTreeMap<Block, Vec<f32>>,
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
            let history = History::new(plan.dims().channels(block.kind), means.clone());
            Some(Arc::new(RwLock::new(history)))
        };
        let state = |block: Block| {
            let constants = constants.remove(&block).expect("constants of every block").into();
            (block, BlockState { constants, history: history(block) })
        };
        let blocks = plan.blocks().map(state).collect();
        Pruning { formula, blocks, observed: Observed::default(), plan, options }
    }

    /// The masks of a method that never looks at a batch, and what compensates for what they leave out (FLAP): mean inputs,
    /// `[n_channels]`, 0 for kept channels. `n_tokens` is the length of a window of the calibration.
    pub fn fixed(
        &mut self,
        stats: &BTreeMap<Block, BlockStats>,
        n_tokens: usize,
    ) -> (Masks, BTreeMap<Block, Vec<f32>>) {
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
        let mut left_out = BTreeMap::new();
        for (block, energy) in energies {
            let Some(n) = self.plan.kept(block) else { continue };
            let width = self.plan.dims().width(block.kind);
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

    /// Rows of the probe of such a batch.
    pub fn probe(&self, n_seq: usize, n_each: usize) -> ProbeShape {
        ProbeShape::of(&self.options, n_seq, n_each)
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

    /// From the probe's states `[n_channels, n_rows]` at positions `pos` `[n_rows]` to the kept units I32 `[n_kept]`.
    /// `observe` notes what decoding is frozen by.
    pub fn choose<'g>(
        &self,
        g: &Builder<'g>,
        states: Tensor<'g>,
        pos: Tensor<'g>,
        probe: ProbeShape,
        observe: bool,
        slots: &mut BlockSlots,
    ) -> Tensor<'g> {
        let block = slots.block;
        let state = &self.blocks[&block];
        let normalised = (self.formula == Formula::Normalised || observe).then(|| normalise(g, states));
        let dims = self.plan.dims();
        let op = score::Score {
            formula: self.formula,
            width: dims.width(block.kind),
            n_each: probe.n_each,
            constants: state.constants.clone(),
            history: state.history.clone(),
            by_position: state.history.is_some() && self.options.history == HistoryKind::Position,
        };
        let scored = match normalised {
            Some(n) if self.formula == Formula::Normalised => n,
            _ => states,
        };
        let scores = g.custom(Type::F32, [1, dims.units(block.kind), 1, 1], &[scored, pos], op);
        g.name(scores, &format!("prune_scores_{}-{}", block.kind.name(), block.il));
        slots.scores = Some(g.output(scores));
        let n = self.plan.kept(block).expect("a block that is pruned");
        let kept = g.custom(Type::I32, [n, 1, 1, 1], &[scores], select::Select);
        g.name(kept, &format!("prune_kept_{}-{}", block.kind.name(), block.il));
        slots.kept = Some(g.output(kept));
        if let (true, Some(n)) = (observe, normalised) {
            slots.observed = Some(energy(g, n));
        }
        kept
    }

    /// Tells the history what a batch's full inference computed; `first` is the first position.
    pub fn update_history(&self, block: Block, first: usize, kept: &[i32], energy: &[f32]) {
        let Some(history) = &self.blocks[&block].history else { return };
        let width = self.plan.dims().width(block.kind);
        let channels: Vec<usize> = kept.iter().flat_map(|&u| u as usize * width..(u as usize + 1) * width).collect();
        let mut history = history.write().expect("no reader panics");
        history.update(self.options.momentum as f32, first, &channels, energy);
    }
}

/// `[n_channels, n_rows]`: each row divided by its root mean square.
pub fn normalise<'g>(g: &Builder<'g>, states: Tensor<'g>) -> Tensor<'g> {
    g.rms_norm(states, f32::MIN_POSITIVE)
}

/// Notes the energy of normalised states; with the rows that it is a mean of.
pub fn energy<'g>(g: &Builder<'g>, normalised: Tensor<'g>) -> (Slot, usize) {
    let [n_channels, n_rows, ..] = normalised.ne();
    (g.output(g.custom(Type::F32, [1, n_channels, 1, 1], &[normalised], score::Energy)), n_rows)
}
