//! From options and files to the state that a session prunes by.

use std::path::Path;

use super::block::{Block, BlockKind, Masks};
use super::budget::Curve;
use super::calibration::{Calibration, path_for};
use super::options::{HistoryKind, Options, Spread};
use super::plan::Plan;
use super::pruning::Pruning;
use super::record::Record;
use super::reduced::LeftOut;
use super::score::Formula;
use crate::error::{Error, Result};
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

/// What the setup must know of a model.
#[derive(Debug, Clone, Copy)]
pub struct ModelFacts<'a> {
    /// Its file; statistics lie beside it
    pub path: &'a Path,
    /// [`crate::gguf::Gguf::fingerprint`]
    pub fingerprint: u64,
    /// Its sizes
    pub dims: Dims,
    /// Its weights
    pub layers: &'a [Layer],
}

/// Prepares to prune as the options say, in a context of `n_ctx` tokens; `curve` are the budgets in
/// the file that they name, and `replay` the batches to follow, if any. Reads the
/// calibration file if the method needs one: errors are those of [`Calibration::read`], and [`crate::error::Kind::Usage`] for options
/// that do not go together with the model or the statistics.
pub fn prepare(
    options: &Options,
    model: ModelFacts,
    curve: Option<Curve>,
    replay: Option<Vec<Record>>,
    n_ctx: usize,
    n_threads: usize,
) -> Result<Setup> {
    let ModelFacts { dims, layers, fingerprint, .. } = model;
    let plan = Plan::new(options, curve.as_ref(), dims)?;
    let of_answers = Options { ratio: options.answer, spread: Spread::Paper, ..options.clone() };
    let answer_plan = (options.answer > 0.0).then(|| Plan::new(&of_answers, None, dims)).transpose()?;
    let path = options.calibration.clone().unwrap_or_else(|| path_for(model.path));
    let (calibration, statistics) = match options.needs_calibration() {
        true => Calibration::read(&path, &dims, fingerprint).map(|(c, sum)| (Some(c), sum))?,
        false => (None, 0),
    };
    if let (Some(c), HistoryKind::Position) = (&calibration, options.history) {
        require_positions(c, n_ctx).map_err(|e| e.in_file(&path))?;
    }
    let formula = Formula::of(options);
    let last = |block: Block| match block.kind {
        BlockKind::Attn => &layers[block.il].attn.output,
        BlockKind::Mlp => layers[block.il].mlp.last(),
    };
    let constants = |block| (block, formula.constants(&last(block).weight.rows, n_threads));
    let constants = plan.blocks().filter(|&b| plan.kept(b) != Some(0)).map(constants).collect();
    let mut pruning =
        Pruning::new(options.clone(), plan, answer_plan, constants, calibration.as_ref().map(|c| &c.blocks));
    pruning.statistics = statistics;
    let source = match (replay, &calibration) {
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
    Ok(Setup { pruning, source, dump: options.dump.is_some() })
}

/// Whether the statistics have means for each position of the context.
fn require_positions(calibration: &Calibration, n_ctx: usize) -> Result<()> {
    if calibration.blocks.values().any(|b| b.positions.is_empty()) {
        return Err(Error::usage(
            "has no means per position (it was made with --no-positions): use --prune-history channel, or calibrate anew",
        ));
    }
    if n_ctx > calibration.seq_len {
        return Err(Error::usage(format!(
            "has means for {} positions, but the context has {n_ctx}: use --prune-history channel, a smaller context, or pp-run \
             calibrate --seq-len {n_ctx}",
            calibration.seq_len
        )));
    }
    Ok(())
}
