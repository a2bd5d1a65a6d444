//! From options and files to the state that a session prunes by.

use super::block::{Block, BlockKind, Masks};
use super::budget::Shares;
use super::calibration::Calibration;
use super::cost::Costs;
use super::options::{Options, Spread};
use super::plan::Plan;
use super::pruning::Pruning;
use super::record::Record;
use super::reduced::LeftOut;
use super::score::Formula;
use crate::error::Result;
use crate::weights::{Dims, Layer};

/// All that a session needs in order to prune.
#[derive(Debug)]
pub struct Setup {
    /// The state
    pub pruning: Pruning,
    /// Where masks come from
    pub source: MaskSource,
    /// Keep a record of each batch
    pub dump: bool,
    /// What was measured on the model, for a budget that was made by it
    pub costs: Option<Costs>,
}

/// Where masks come from.
#[derive(Debug)]
pub enum MaskSource {
    /// A probe of each batch; for answers what the text made use of
    Probe,
    /// They are fixed, with what stands in for what they leave out
    Fixed(Masks, LeftOut),
    /// The records of another run, in their order
    Replay(Vec<Record>),
}

/// What options refer to, read from files.
#[derive(Debug, Default)]
pub struct Sources<'a> {
    /// Statistics and costs of the model, and what tells them from others, if [`Options::needs_calibration`]
    pub calibration: Option<(&'a Calibration, u64)>,
    /// The budget for a spread that comes from a file
    pub shares: Option<Shares>,
    /// The batches to follow
    pub replay: Option<Vec<Record>>,
}

/// Prepares to prune a model of these sizes and weights as the options say, with `n_threads` threads. [`crate::error::Kind::Usage`] for options that do not go together
/// with the model or the statistics.
pub fn prepare(options: &Options, dims: Dims, layers: &[Layer], sources: Sources, n_threads: usize) -> Result<Setup> {
    let plan = Plan::new(options, sources.shares, dims.clone())?;
    let of_answers = Options { ratio: options.answer, spread: Spread::Paper, ..options.clone() };
    let answer_plan = (options.answer > 0.0).then(|| Plan::new(&of_answers, None, dims)).transpose()?;
    let (calibration, statistics) = sources.calibration.map_or((None, 0), |(c, sum)| (Some(c), sum));
    let formula = Formula::of(options);
    let constants = |block: Block| (block, formula.constants(&block.last(layers).weight.rows, n_threads));
    // A method that never looks at the batch scores all blocks before it knows what they keep.
    // And a guard may change what is kept.
    let may_be_scored =
        |b: Block| !options.method.looks_at_batch() || options.guard.is_some() && b.kind == BlockKind::Mlp;
    let is_scored = |&b: &Block| may_be_scored(b) || plan.kept(b).is_some_and(|n| n > 0);
    let constants = plan.blocks().filter(is_scored).map(constants).collect();
    let mut pruning = Pruning::new(options.clone(), plan, answer_plan, constants, calibration.map(|c| &c.blocks));
    pruning.statistics = statistics;
    let source = match (sources.replay, calibration) {
        (Some(records), _) => {
            let counts = |frozen| {
                let of_them = records.iter().filter(move |r| r.frozen == frozen);
                of_them.flat_map(|r| r.kept.iter().map(|(&b, k)| (b, k.len()))).collect()
            };
            let mut of_answers = pruning.plan.clone();
            of_answers.set_counts(counts(true));
            pruning.plan.set_counts(counts(false));
            if records.iter().any(|r| r.frozen) {
                pruning.answer_plan = Some(of_answers);
            }
            match records.first().filter(|r| r.frozen) {
                Some(first) => MaskSource::Fixed(first.kept.clone(), LeftOut::new()),
                None => MaskSource::Replay(records),
            }
        }
        (None, Some(c)) if !options.method.looks_at_batch() => {
            let (masks, left_out) = pruning.fixed(&c.blocks, c.seq_len);
            MaskSource::Fixed(masks, left_out)
        }
        (None, _) => MaskSource::Probe,
    };
    let costs = calibration.filter(|_| options.spread == Spread::Calibrated).and_then(|c| c.costs.as_ref());
    Ok(Setup { pruning, source, dump: options.dump.is_some(), costs: costs.cloned() })
}
