//! What each batch kept, for dumps and replays.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::block::{Block, BlockKind, Masks};
use super::select::highest;
use crate::error::{Error, Result};
use crate::weights::Dims;

/// Scores of a block in brief.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Summary {
    /// Least score
    pub min: f32,
    /// Middle score
    pub median: f32,
    /// Largest score
    pub max: f32,
    /// Least score that is kept
    pub cut: f32,
}

impl Summary {
    /// Of all scores of a block, of which `n_kept` are kept.
    pub fn of(scores: &[f32], n_kept: usize) -> Summary {
        let mut sorted = scores.to_vec();
        sorted.sort_by(f32::total_cmp);
        let cut = highest(scores, n_kept).iter().map(|&k| scores[k]).fold(f32::INFINITY, f32::min);
        Summary { min: sorted[0], median: sorted[sorted.len() / 2], max: sorted[sorted.len() - 1], cut }
    }
}

/// One batch, or one mask that is fixed for what follows.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Record {
    /// The masks serve until others are made: this is the record of no batch
    pub frozen: bool,
    /// Samples of the batch
    pub n_seq: usize,
    /// Tokens of each
    pub n_each: usize,
    /// Position of the first
    pub first: usize,
    /// Tokens at the beginning and at the end that ran on all weights
    pub dense: [usize; 2],
    /// What was kept; none if the batch ran whole
    pub kept: Masks,
    /// Scores, where there were any
    pub scores: BTreeMap<Block, Summary>,
}

impl Record {
    /// Whether a model of this shape can run with it.
    pub fn check(&self, dims: &Dims) -> Result<()> {
        let n_dense = self.dense[0].saturating_add(self.dense[1]);
        if n_dense > 0 && (self.n_seq != 1 || n_dense >= self.n_each) {
            return Err(Error::malformed("has a batch of which all tokens are dense"));
        }
        for (block, kept) in &self.kept {
            let units = if block.il < dims.n_layer() { block.units(dims) as i32 } else { 0 };
            let rising = kept.windows(2).all(|w| w[0] < w[1]);
            // A batch may drop a block; reduced weights have units.
            let is_none = self.frozen && kept.is_empty();
            if units == 0
                || is_none
                || block.is_whole(dims) && !kept.is_empty()
                || !rising
                || kept.iter().any(|k| !(0..units).contains(k))
            {
                return Err(Error::malformed(format!(
                    "layer {} keeps no ascending list of {}s of this model's {units}",
                    block.il,
                    block.kind.unit()
                )));
            }
        }
        Ok(())
    }
}

/// The text of a dump of these batches, of the model with this fingerprint, pruned with this method and ratio.
pub fn to_text(records: &[Record], fingerprint: u64, method: &str, ratio: f64) -> String {
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
            "dense": r.dense,
            "blocks": r.kept.iter().map(|(b, k)| block(r, b, k)).collect::<Vec<_>>(),
        })
    };
    let dump = json!({
        "pp-run prune dump": 1,
        "model": format!("{fingerprint:016x}"),
        "method": method,
        "ratio": ratio,
        "batches": records.iter().map(batch).collect::<Vec<_>>(),
    });
    format!("{dump}\n")
}

/// The batches that the text of a dump holds. [`crate::error::Kind::Malformed`] if it is no dump, or not of a model of this shape and
/// fingerprint ([`crate::gguf::Gguf::fingerprint`]).
pub fn parse(text: &str, dims: &Dims, fingerprint: u64) -> Result<Vec<Record>> {
    let broken = || Error::malformed("is no dump of --prune-dump");
    let dump: Value = serde_json::from_str(text).map_err(|_| broken())?;
    if dump["pp-run prune dump"].as_u64() != Some(1) {
        return Err(broken());
    }
    if dump["model"].as_str() != Some(&format!("{fingerprint:016x}")) {
        return Err(Error::malformed("is of another model"));
    }
    let number = |v: &Value| v.as_u64().and_then(|n| usize::try_from(n).ok()).ok_or_else(broken);
    let mut records = Vec::new();
    for batch in dump["batches"].as_array().ok_or_else(broken)? {
        let mut kept = BTreeMap::new();
        for block in batch["blocks"].as_array().ok_or_else(broken)? {
            let kind = match block["block"].as_str() {
                Some("attn") => BlockKind::Attn,
                Some("mlp") => BlockKind::Mlp,
                _ => return Err(broken()),
            };
            let ids = block["kept"].as_array().ok_or_else(broken)?;
            let ids = ids.iter().map(|v| v.as_i64().and_then(|n| i32::try_from(n).ok()).ok_or_else(broken));
            kept.insert(Block { il: number(&block["layer"])?, kind }, ids.collect::<Result<Vec<i32>>>()?);
        }
        let record = Record {
            frozen: batch["frozen"].as_bool().ok_or_else(broken)?,
            n_seq: number(&batch["n_seq"])?,
            n_each: number(&batch["n_each"])?,
            first: number(&batch["first"])?,
            dense: match &batch["dense"] {
                // Dumps of earlier versions do not say: their batches had no dense tokens beside pruned ones.
                Value::Null => [0; 2],
                dense => [number(&dense[0])?, number(&dense[1])?],
            },
            kept,
            scores: BTreeMap::new(),
        };
        record.check(dims)?;
        records.push(record);
    }
    if records.is_empty() {
        return Err(Error::malformed("has no batches"));
    }
    Ok(records)
}
