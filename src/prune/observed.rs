//! What a text makes use of: the statistic that masks for answers are chosen by.

use std::collections::BTreeMap;

use super::block::{Block, Masks};
use super::plan::Plan;
use super::select;

/// Sums of energies of states that are divided by their norm, by block (GRIFFIN, arXiv 2404.01365).
#[derive(Debug, Default)]
pub struct Observed {
    /// Rows, and the sum of each channel
    blocks: BTreeMap<Block, (f64, Vec<f64>)>,
}

impl Observed {
    /// Adds the mean over `n` rows, `[n_channels]`.
    pub fn add(&mut self, block: Block, n: usize, mean: &[f32]) {
        let (rows, sums) = self.blocks.entry(block).or_insert_with(|| (0.0, vec![0.0; mean.len()]));
        *rows += n as f64;
        sums.iter_mut().zip(mean).for_each(|(s, &m)| *s += f64::from(m) * n as f64);
    }

    /// Rows seen, of the block that saw most.
    pub fn n_rows(&self) -> f64 {
        self.blocks.values().map(|r| r.0).fold(0.0, f64::max)
    }

    /// The units that these states make most use of, as many as planned; `None` before anything was observed.
    pub fn masks(&self, plan: &Plan) -> Option<Masks> {
        let mask = |block: Block| {
            let (rows, sums) = self.blocks.get(&block)?;
            let width = block.width(plan.dims());
            let energy = |c: &[f64]| (c.iter().sum::<f64>() / rows) as f32;
            let scores: Vec<f32> = sums.chunks_exact(width).map(energy).collect();
            let kept = select::highest(&scores, plan.kept(block)?);
            Some((block, kept.into_iter().map(|k| k as i32).collect()))
        };
        Some(plan.blocks().filter_map(mask).collect::<Masks>()).filter(|m| !m.is_empty())
    }
}
