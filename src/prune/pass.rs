//! What a graph does about pruning, and the stages from a probe's states to the units that are kept, as operations of the graph.

use ggml::{Builder, Slot, Tensor, Type};

use super::block::Block;
use super::options::HistoryKind;
use super::probe::{PickByResidual, ProbeShape, SquaredNorms};
use super::pruning::Pruning;
use super::reduced::Reduced;
use super::score::{Energy, EnergyByPosition, Formula, Moments, Score};
use super::select::Select;
use super::stock::{self, Scoring};

/// What a batch does about pruning, with what it needs for it.
#[derive(Debug, Clone, Copy)]
pub enum Pass<'a> {
    /// Runs whole.
    Dense,
    /// Runs whole, and notes what [`Pruning::observed`] collects.
    Observe(&'a Pruning),
    /// Probes each block, and runs on what the probe chose.
    Probe {
        /// The state, which the history is taken from
        pruning: &'a Pruning,
        /// Notes what [`Pruning::observed`] collects, too
        observe: bool,
    },
    /// Runs on units that are given for this batch, as many as planned.
    Given(&'a Pruning),
    /// Runs on reduced weights that were made before.
    Reduced(&'a Reduced),
    /// Runs whole, and notes moments of all blocks for a calibration.
    Calibrate {
        /// Notes energies by position, too
        positions: bool,
    },
}

/// [`Pass`] without what it needs: two graphs of one kind, on the same state, are the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PassKind {
    /// [`Pass::Dense`]
    Dense,
    /// [`Pass::Observe`]
    Observe,
    /// [`Pass::Probe`], and whether it observes
    Probe(bool),
    /// [`Pass::Given`]
    Given,
    /// [`Pass::Reduced`]
    Reduced,
    /// [`Pass::Calibrate`], and whether by position
    Calibrate(bool),
}

impl Pass<'_> {
    /// Without what it needs.
    pub fn kind(&self) -> PassKind {
        match *self {
            Pass::Dense => PassKind::Dense,
            Pass::Observe(_) => PassKind::Observe,
            Pass::Probe { observe, .. } => PassKind::Probe(observe),
            Pass::Given(_) => PassKind::Given,
            Pass::Reduced(_) => PassKind::Reduced,
            Pass::Calibrate { positions } => PassKind::Calibrate(positions),
        }
    }
}

/// Where a graph notes what it found out about a block.
#[derive(Debug, Clone, Copy)]
pub struct Notes {
    /// Which block
    pub block: Block,
    /// I32 `[n_kept]`: what a probe chose
    pub kept: Option<Slot>,
    /// F32 `[1, n_units]`: the scores that it chose by
    pub scores: Option<Slot>,
    /// F32 `[1, n_channels]`: energy of normalised states, and the number of rows that it is a mean of
    pub observed: Option<(Slot, usize)>,
    /// F32 `[1, n_channels]` or `[n_channels, n_each]`: energy of the (kept) channels over the batch
    pub energy: Option<Slot>,
    /// F32 `[2, n_channels]`: mean and mean of squares
    pub moments: Option<Slot>,
}

impl Notes {
    /// Nothing noted yet.
    pub fn new(block: Block) -> Notes {
        Notes { block, kept: None, scores: None, observed: None, energy: None, moments: None }
    }
}

/// Stage pick: row numbers I32 `[n_rows]` of the probe of largest residual importance, of the residual stream `x` `[n_embd, n_tokens]`
/// of `n_seq` samples; but for so many rows at its beginning and its end, which run dense. A block that a GPU computes `is_stock`.
pub fn pick<'g>(
    g: &Builder<'g>,
    x: Tensor<'g>,
    probe: ProbeShape,
    n_seq: usize,
    dense: [usize; 2],
    is_stock: bool,
) -> Tensor<'g> {
    let n_tokens = x.ne()[1];
    if is_stock {
        let n_each = (n_tokens - dense[0] - dense[1]) / n_seq;
        return stock::pick(g, x, probe, dense[0], [n_seq, n_each]);
    }
    let squares = g.custom(Type::F32, [1, n_tokens, 1, 1], &[x], SquaredNorms);
    let [first, last] = dense;
    let pick = PickByResidual { probe, first, n_seq, n_each: (n_tokens - first - last) / n_seq };
    g.custom(Type::I32, [probe.n_rows(), 1, 1, 1], &[squares], pick)
}

/// Stages score (with the fusion with history) and select: from the probe's states `[n_channels, n_rows]` at positions `pos`
/// `[n_rows]` to the kept units I32 `[n_kept]`. With the positions goes F32 `[1, n_rows]`, 0 for rows that fill up a sample, if some do.
/// `observe` notes what masks for answers are chosen by.
pub fn choose<'g>(
    g: &Builder<'g>,
    pruning: &Pruning,
    states: Tensor<'g>,
    (pos, text): (Tensor<'g>, Option<Tensor<'g>>),
    probe: ProbeShape,
    observe: bool,
    notes: &mut Notes,
) -> Tensor<'g> {
    let block = notes.block;
    let state = pruning.block(block);
    let resident = pruning.resident(block);
    let is_normalised = pruning.formula == Formula::Normalised;
    let normalised = (is_normalised || observe).then(|| normalise(g, states));
    let dims = pruning.plan.dims();
    let width = block.width(dims);
    let by_position = state.history.is_some() && pruning.options.history == HistoryKind::Position;
    let scored = normalised.filter(|_| is_normalised).unwrap_or(states);
    let scores = match resident {
        Some((store, block)) => {
            let by_position = by_position.then_some((probe.n_each, pos));
            let how = Scoring { formula: pruning.formula, width, block, by_position, text };
            stock::scores(g, scored, how, &|id| g.leaf(store, id))
        }
        None => {
            let op = Score {
                formula: pruning.formula,
                width,
                n_each: probe.n_each,
                constants: state.constants.clone(),
                prior: state.prior.clone(),
                history: state.history.clone(),
                by_position,
            };
            let sources: Vec<Tensor<'g>> = [scored, pos].into_iter().chain(text).collect();
            g.custom(Type::F32, [1, block.units(dims), 1, 1], &sources, op)
        }
    };
    g.name(scores, &format!("prune_scores_{}-{}", block.kind.name(), block.il));
    notes.scores = Some(g.output(scores));
    let n = pruning.plan.kept(block).expect("a block that is pruned");
    let kept = match resident {
        Some(_) => stock::select(g, scores, n),
        None => g.custom(Type::I32, [n, 1, 1, 1], &[scores], Select),
    };
    g.name(kept, &format!("prune_kept_{}-{}", block.kind.name(), block.il));
    notes.kept = Some(g.output(kept));
    if let (true, Some(normalised)) = (observe && pruning.answers_keep(block), normalised) {
        notes.observed = Some(energy(g, normalised, None, resident.is_some()));
    }
    kept
}

/// Notes what the pass wants to know of the inputs `states` `[n_channels, n_rows]` of a block's last matrix, of `n_seq` samples; of kept
/// channels, if the block `is_reduced`. `text` F32 `[1, n_rows]` is 0 for rows that fill up a sample, if some do. A block that a GPU computes
/// `is_stock`. Returns whether anything was noted of the block.
pub fn note<'g>(
    g: &Builder<'g>,
    pass: Pass,
    (states, text): (Tensor<'g>, Option<Tensor<'g>>),
    n_seq: usize,
    is_reduced: bool,
    is_stock: bool,
    notes: &mut Notes,
) -> bool {
    let [n_channels, n_rows, ..] = states.ne();
    let by_position = || {
        if is_stock {
            return g.output(stock::energy_by_position(g, states, text, n_seq));
        }
        let with_text: Vec<Tensor<'g>> = [states].into_iter().chain(text).collect();
        let op = EnergyByPosition { n_seq };
        g.output(g.custom(Type::F32, [n_channels, n_rows / n_seq, 1, 1], &with_text, op))
    };
    match pass {
        Pass::Calibrate { positions } => {
            let moments = match is_stock {
                true => stock::moments(g, states),
                false => g.custom(Type::F32, [2, n_channels, 1, 1], &[states], Moments),
            };
            notes.moments = Some(g.output(moments));
            notes.observed = Some(energy(g, normalise(g, states), None, is_stock));
            notes.energy = positions.then(by_position);
        }
        Pass::Probe { pruning, .. } if is_reduced => {
            notes.energy = pruning.keeps_history().map(|positions| match positions {
                true => by_position(),
                false => energy(g, states, text, is_stock).0,
            });
        }
        Pass::Observe(pruning) | Pass::Probe { pruning, observe: true } if pruning.answers_keep(notes.block) => {
            notes.observed = Some(energy(g, normalise(g, states), None, is_stock));
        }
        _ => return false,
    }
    true
}

/// `[n_channels, n_rows]`: each row divided by its root mean square.
fn normalise<'g>(g: &Builder<'g>, states: Tensor<'g>) -> Tensor<'g> {
    g.rms_norm(states, f32::MIN_POSITIVE)
}

/// Energy of each channel of states, with the number of rows that it is a mean of; `text` says which of them are text, if some are not.
fn energy<'g>(g: &Builder<'g>, states: Tensor<'g>, text: Option<Tensor<'g>>, is_stock: bool) -> (Slot, usize) {
    let [n_channels, n_rows, ..] = states.ne();
    let energy = match is_stock {
        true => stock::energy(g, states, text),
        false => {
            let sources: Vec<Tensor<'g>> = [states].into_iter().chain(text).collect();
            g.custom(Type::F32, [1, n_channels, 1, 1], &sources, Energy)
        }
    };
    (g.output(energy), n_rows)
}
