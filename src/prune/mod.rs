//! The Probe Pruning pass, in the order of the paper's stages: plan, probe, history, score, select, reduce.
//!
//! Before a block of a layer runs on a batch, a few of the batch's rows run ahead through it with all its weights (the
//! probe); what they activate, fused with what earlier batches did, decides which heads or channels are kept; then the
//! batch runs on reduced tensors. All of that is one graph. This module makes the operations and keeps the state between
//! batches; it sees matrices and numbers, never a file's layout.
//!
//! In reading order: `options` and `block` (what can be asked for, and what can be left out), `cost`, `budget` and `plan` (what it costs to
//! leave out a share of a block, which share is left out, and how many units that keeps), `probe` (which rows run ahead), `history`, `score` and `select` (from their states to
//! kept units), `left_out` (what stands in for the others), `pass` (these stages as operations of a graph), `stock` and `resident` (the same in ggml's own operations, and what a GPU has of them in its memory),
//! `reduce` (tensors of kept units, made in a batch's graph), `made` (tensors that are made and kept) and `reduced` (made once), `observed` (what masks for answers are chosen by), `pruning` (the state between
//! batches), `record` (dumps and replays), `calibration` (statistics in a file), `scale` (divergences in words), `setup` (all of it from options and files).
//!
//! To add a **method**: a variant of [`Method`] with its name, its formula in `score` ([`Formula::of`], constants and scores), and, if it does
//! not look at the batch, its statistics in [`Pruning::fixed`]; then a column in `tests/golden/make`, which makes the figures of the reference
//! that `tests/prune.rs` compares with.
//!
//! To add a **stage**: an operation beside the stage before it, with its unit test; its call in `pass`, whose functions a graph calls in order;
//! and if the host is to hear of it, a slot in [`Notes`] that the engine reads after the batch.

mod block;
mod budget;
mod calibration;
mod cost;
mod history;
mod left_out;
mod made;
mod observed;
mod options;
mod pass;
mod plan;
mod probe;
mod pruning;
mod record;
mod reduce;
mod reduced;
mod resident;
mod scale;
mod score;
mod select;
mod setup;
mod stock;

pub use block::{Block, BlockKind, Masks, all_blocks};
pub use budget::{Curve, Shares, between, parse as parse_plan, saved};
pub use calibration::{BlockStats, Calibration, path_for};
pub use cost::{Costs, LayerCosts, Measured, cheapest, expected, largest, measurements};
pub use left_out::MeanLeftOut;
pub use observed::Observed;
pub use options::{HistoryKind, MAX_RATIO, Method, Metric, Options, Picker, Spread};
pub use pass::{Notes, Pass, PassKind, choose, note, pick};
pub use plan::Plan;
pub use probe::{ProbeShape, evenly};
pub use pruning::{IDENTITY_BYTES, Pruning};
pub use record::{Record, Summary, parse as parse_dump, to_text as dump_text};
pub use reduce::{GatherColumns, GatherHeads, GatherRows, OwnColumns, SpreadHeads, column_type};
pub use reduced::{LeftOut, Reduced, ReducedLinear, ReducedMatrix, Role};
pub use resident::copies;
pub use scale::Scale;
pub use score::Formula;
pub use setup::{MaskSource, Setup, Sources, prepare};
pub use stock::{
    gather_columns as stock_columns, gather_heads as stock_heads, gather_rows as stock_rows,
    mean_left_out as stock_left_out, spread_heads as stock_spread,
};
