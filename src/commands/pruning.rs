//! What commands share about pruning: from options and files to a session that prunes, and the dumps.

use std::path::Path;

use serde_json::json;

use super::input::read_text;
use super::output::write_file;
use crate::calibration::{Calibration, fingerprint, path_for};
use crate::error::{Error, Result};
use crate::model::Model;
use crate::prune::plan::{Block, Plan};
use crate::prune::record::{self, Record};
use crate::prune::score::Formula;
use crate::prune::{self, HistoryKind, Pruning};
use crate::session::Session;

/// Lets the session prune as the options say; not at all for `None`.
pub fn apply(session: &mut Session, model: &Model, options: Option<&prune::Options>, n_threads: usize) -> Result<()> {
    let Some(options) = options else { return session.set_pruning(None, None, None, false) };
    let dims = model.dims();
    let plan = Plan::new(options, dims)?;
    let path = options.calibration.clone().unwrap_or_else(|| path_for(model.gguf().path()));
    let calibration =
        options.needs_calibration().then(|| Calibration::read(&path, &dims, fingerprint(model.gguf()))).transpose()?;
    if let (Some(c), HistoryKind::Position) = (&calibration, options.history) {
        if c.blocks.values().any(|b| b.positions.is_empty()) {
            return Err(Error::usage(
                "has no means per position (it was made with --no-positions): use --prune-history channel, or calibrate anew",
            )
            .in_file(&path));
        }
        if session.n_ctx() > c.seq_len {
            return Err(Error::usage(format!(
                "has means for {} positions, but the context has {}: use --prune-history channel, a smaller context, or pp-run \
                 calibrate --seq-len {}",
                c.seq_len,
                session.n_ctx(),
                session.n_ctx()
            ))
            .in_file(&path));
        }
    }
    let replay = options.replay.as_deref().map(|p| read_dump(p, model)).transpose()?;
    let constants = model.constants(Formula::of(options), plan.blocks(), n_threads);
    let mut pruning = Pruning::new(options.clone(), plan, constants, calibration.as_ref().map(|c| &c.blocks));
    let fixed = match &calibration {
        Some(c) if !options.method.looks_at_batch() => Some(pruning.fixed(&c.blocks, c.seq_len)),
        _ => None,
    };
    session.set_pruning(Some(pruning), fixed, replay, options.dump.is_some())
}

/// Writes what was kept, if a dump is wanted.
pub fn write_dump(session: &Session, model: &Model, options: Option<&prune::Options>) -> Result<()> {
    let Some((options, path)) = options.and_then(|o| Some((o, o.dump.as_deref()?))) else { return Ok(()) };
    let block = |r: &Record, block: &Block, kept: &[i32]| {
        let mut object = json!({ "layer": block.il, "block": block.kind.name(), "kept": kept });
        if let Some(s) = r.scores.get(block) {
            object["scores"] = json!({ "min": s.min, "median": s.median, "max": s.max, "cut": s.cut });
        }
        object
    };
    let batch = |r: &Record| {
        json!({
            "frozen": r.frozen,
            "n_seq": r.n_seq,
            "n_each": r.n_each,
            "first": r.first,
            "blocks": r.kept.iter().map(|(b, k)| block(r, b, k)).collect::<Vec<_>>(),
        })
    };
    let dump = json!({
        "pp-run prune dump": 1,
        "model": format!("{:016x}", fingerprint(model.gguf())),
        "method": options.method.name(),
        "ratio": options.ratio,
        "batches": session.records().unwrap_or_default().iter().map(batch).collect::<Vec<_>>(),
    });
    write_file(path, format!("{dump}\n").as_bytes())
}

/// The batches of a dump that was made with this model.
fn read_dump(path: &Path, model: &Model) -> Result<Vec<Record>> {
    record::parse(&read_text(path)?, &model.dims(), fingerprint(model.gguf())).map_err(|e| e.in_file(path))
}
