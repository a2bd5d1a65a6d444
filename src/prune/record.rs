//! What each batch kept, for dumps and replays.

use std::collections::BTreeMap;

use super::Masks;
use super::plan::{Block, Dims};
use super::select::highest;
use crate::error::{Error, Result};

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
    /// The masks serve until others are made; no batch of its own
    pub frozen: bool,
    /// Samples of the batch
    pub n_seq: usize,
    /// Tokens of each
    pub n_each: usize,
    /// Position of the first
    pub first: usize,
    /// What was kept; none if the batch ran whole
    pub kept: Masks,
    /// Scores, where there were any
    pub scores: BTreeMap<Block, Summary>,
}

impl Record {
    /// Whether a model of this shape can run with it.
    pub fn check(&self, dims: &Dims) -> Result<()> {
        for (block, kept) in &self.kept {
            let units = dims.units(block.kind) as i32;
            let rising = kept.windows(2).all(|w| w[0] < w[1]);
            if block.il >= dims.n_layer || kept.is_empty() || !rising || kept[0] < 0 || kept[kept.len() - 1] >= units {
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
