//! What each unit is worth: energy of its channels times a constant of their weights.

use std::sync::{Arc, RwLock};

use ggml::{Op, Parts, Source, dequantize_row};

use super::block::{Block, BlockKind};
use super::history::{History, fuse};
use super::options::{Method, Metric, Options};
use crate::weights::{Dims, LayerDims, Matrix};

/// How energies and weights become scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Formula {
    /// `a_k * sqrt(sum_j W_jk^4)`; a head: the norm over its channels
    Ppsp,
    /// `a_k * sqrt(sum_j W_jk^2)`; a head: the norm over its channels
    Normalised,
    /// `sqrt(a_k) * sum_j |W_jk|`; a head: the sum over its channels
    WandaSp,
    /// `v_k * sum_j W_jk^2`; a head: the sum over its channels
    Flap,
}

impl Formula {
    /// The formula of a method.
    pub fn of(options: &Options) -> Formula {
        match (options.method, options.metric) {
            (Method::WandaSp, _) => Formula::WandaSp,
            (Method::Flap | Method::FlapAsCoded, _) => Formula::Flap,
            (Method::Static, _) | (_, Metric::Ppsp) => Formula::Ppsp,
            (_, Metric::Normalised) => Formula::Normalised,
        }
    }

    /// A column's constant out of the sum that [`Formula::add`] made.
    fn constant(self, sum: f64) -> f32 {
        match self {
            Formula::Ppsp | Formula::Normalised => sum.sqrt() as f32,
            Formula::WandaSp | Formula::Flap => sum as f32,
        }
    }

    /// What a weight adds to its column's sum.
    fn add(self, w: f32) -> f32 {
        match self {
            Formula::Ppsp => (w * w) * (w * w),
            Formula::Normalised | Formula::Flap => w * w,
            Formula::WandaSp => w.abs(),
        }
    }

    /// The constants of the input channels of a block's last matrix, `[n_in]`, with `n_threads` threads.
    pub fn constants(self, matrix: &Matrix, n_threads: usize) -> Vec<f32> {
        let (n_in, n_out) = (matrix.n_in(), matrix.n_out());
        let share = n_out.div_ceil(n_threads).max(1);
        let part = |first: usize| {
            let mut sums = vec![0.0f64; n_in];
            let mut row = vec![0.0f32; n_in];
            // A few rows are added up as floats and then go into doubles, which is as exact as doubles alone, and fast.
            let mut few = vec![0.0f32; n_in];
            for j in first..(first + share).min(n_out) {
                dequantize_row(matrix.ty(), matrix.row(j), &mut row);
                few.iter_mut().zip(&row).for_each(|(s, &w)| *s += self.add(w));
                if j % 16 == 15 || j + 1 == n_out || j + 1 == first + share {
                    sums.iter_mut().zip(&mut few).for_each(|(s, f)| *s += f64::from(std::mem::take(f)));
                }
            }
            sums
        };
        let parts: Vec<Vec<f64>> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..n_out).step_by(share).map(|first| scope.spawn(move || part(first))).collect();
            threads.into_iter().map(|t| t.join().unwrap_or_else(|e| std::panic::resume_unwind(e))).collect()
        });
        (0..n_in).map(|k| self.constant(parts.iter().map(|p| p[k]).sum())).collect()
    }

    /// Score of a unit by its channels' energies and constants.
    pub fn score(self, energy: &[f32], constants: &[f32]) -> f32 {
        let channels = energy.iter().zip(constants).map(|(&a, &c)| (f64::from(a), f64::from(c)));
        match self {
            // The root of one channel's square would only round it.
            Formula::Ppsp | Formula::Normalised if energy.len() == 1 => energy[0] * constants[0],
            Formula::Ppsp | Formula::Normalised => channels.map(|(a, c)| (a * c) * (a * c)).sum::<f64>().sqrt() as f32,
            Formula::WandaSp => channels.map(|(a, c)| a.sqrt() * c).sum::<f64>() as f32,
            Formula::Flap => channels.map(|(a, c)| a * c).sum::<f64>() as f32,
        }
    }

    /// Scores of all units of a block: `energy` and `constants` are `[channels]`.
    pub fn scores(self, energy: &[f32], constants: &[f32], width: usize) -> Vec<f32> {
        energy.chunks_exact(width).zip(constants.chunks_exact(width)).map(|(a, c)| self.score(a, c)).collect()
    }
}

/// A pruned block's numbers.
#[derive(Debug)]
pub struct BlockState {
    /// Constants of the channels: [`Formula::constants`]
    pub constants: Arc<[f32]>,
    /// What the model's channels do on other texts: energies of normalised states, which count as much as the probe's
    pub prior: Option<Arc<[f32]>>,
    /// What the probe's energy is fused with
    pub history: Option<Arc<RwLock<History>>>,
}

/// Probe states F32 `[n_channels, n_rows]` (and the rows' positions, I32 `[n_rows]`, for a history that tells them apart)
/// -> F32 `[1, n_units]`: scores. A third source F32 `[1, n_rows]` says which rows are text, if some are not, see [`n_of`].
#[derive(Debug)]
pub struct Score {
    /// How to score
    pub formula: Formula,
    /// Channels of a unit
    pub width: usize,
    /// Rows of each sample in the probe. They lie sample by sample, and each sample has the same positions
    pub n_each: usize,
    /// Constants of the channels
    pub constants: Arc<[f32]>,
    /// Energies that are added to those of the probe
    pub prior: Option<Arc<[f32]>>,
    /// What the energy is fused with
    pub history: Option<Arc<RwLock<History>>>,
    /// The fusion is done position by position and then summed; else once, over all rows
    pub by_position: bool,
}

impl Op for Score {
    fn compute(&self, sources: &[Source], parts: &mut Parts) {
        while let Some(mut out) = parts.next() {
            let units = out.rows();
            let channels = units.start * self.width..units.end * self.width;
            let n_rows = sources[0].ne()[1];
            let history = self.history.as_ref().map(|h| h.read().expect("no writer panics"));
            let mut energy = vec![0.0f64; channels.len()];
            let groups = if self.by_position { self.n_each } else { 1 };
            for group in 0..groups {
                let mut p = vec![0.0f64; channels.len()];
                let rows = (group..n_rows).step_by(groups);
                let n = n_of(sources.get(2), rows.clone());
                for row in rows {
                    let states = &sources[0].row::<f32>(row)[channels.clone()];
                    p.iter_mut().zip(states).for_each(|(p, &x)| *p += f64::from(x) * f64::from(x));
                }
                match &history {
                    None => energy.iter_mut().zip(&p).for_each(|(a, p)| *a += p / n),
                    Some(history) => {
                        let pos = self.by_position.then(|| sources[1].row::<i32>(0)[group] as usize);
                        let h = &history.row(pos)[channels.clone()];
                        for ((a, p), &h) in energy.iter_mut().zip(&p).zip(h) {
                            *a += f64::from(fuse((p / n) as f32, h));
                        }
                    }
                }
            }
            if let Some(prior) = &self.prior {
                energy.iter_mut().zip(&prior[channels.clone()]).for_each(|(a, &p)| *a += f64::from(p));
            }
            let energy: Vec<f32> = energy.into_iter().map(|a| a as f32).collect();
            let scores = self.formula.scores(&energy, &self.constants[channels], self.width);
            out.elements::<f32>().copy_from_slice(&scores);
        }
    }
}

/// Over how many rows there is a mean: over all, or over those that are text, F32 `[1, n_rows]`. The rest, which are zero, add nothing to sums.
/// As in the paper's code there is a thousandth more, so that nothing is divided by none.
fn n_of(text: Option<&Source>, rows: impl ExactSizeIterator<Item = usize>) -> f64 {
    match text {
        None => rows.len() as f64,
        Some(text) => rows.map(|row| f64::from(text.row::<f32>(row)[0])).sum::<f64>() + 1e-3,
    }
}

/// States F32 `[n_channels, n_rows]` -> F32 `[1, n_channels]`: means of squares over all rows, or, with a second source, over those that are
/// text, see [`n_of`].
#[derive(Debug)]
pub struct Energy;

impl Op for Energy {
    fn compute(&self, sources: &[Source], parts: &mut Parts) {
        while let Some(mut out) = parts.next() {
            let channels = out.rows();
            let n_rows = sources[0].ne()[1];
            let mut sums = vec![0.0f64; channels.len()];
            for row in 0..n_rows {
                let states = &sources[0].row::<f32>(row)[channels.clone()];
                sums.iter_mut().zip(states).for_each(|(s, &x)| *s += f64::from(x) * f64::from(x));
            }
            let n = n_of(sources.get(1), 0..n_rows);
            out.elements::<f32>().iter_mut().zip(&sums).for_each(|(o, s)| *o = (s / n) as f32);
        }
    }
}

/// States F32 `[n_channels, n_seq * n_each]`, sample by sample -> F32 `[n_channels, n_each]`: means of squares over samples; with a
/// second source over those that are text there, see [`n_of`].
#[derive(Debug)]
pub struct EnergyByPosition {
    /// Number of samples
    pub n_seq: usize,
}

impl Op for EnergyByPosition {
    fn compute(&self, sources: &[Source], parts: &mut Parts) {
        while let Some(mut out) = parts.next() {
            let [n_channels, n_rows, ..] = sources[0].ne();
            let n_each = n_rows / self.n_seq;
            let positions = out.rows();
            for (out, s) in out.elements::<f32>().chunks_exact_mut(n_channels).zip(positions) {
                out.fill(0.0);
                for b in 0..self.n_seq {
                    let states = sources[0].row::<f32>(b * n_each + s);
                    out.iter_mut().zip(states).for_each(|(o, &x)| *o += x * x);
                }
                let n = n_of(sources.get(1), (s..n_rows).step_by(n_each));
                out.iter_mut().for_each(|o| *o /= n as f32);
            }
        }
    }
}

/// States F32 `[n_channels, n_rows]` -> F32 `[2, n_channels]`: mean and mean of squares over all rows.
#[derive(Debug)]
pub struct Moments;

impl Op for Moments {
    fn compute(&self, sources: &[Source], parts: &mut Parts) {
        while let Some(mut out) = parts.next() {
            let channels = out.rows();
            let n_rows = sources[0].ne()[1];
            let mut sums = vec![[0.0f64; 2]; channels.len()];
            for row in 0..n_rows {
                let states = &sources[0].row::<f32>(row)[channels.clone()];
                for (s, &x) in sums.iter_mut().zip(states) {
                    let x = f64::from(x);
                    s[0] += x;
                    s[1] += x * x;
                }
            }
            for (out, s) in out.elements::<f32>().chunks_exact_mut(2).zip(&sums) {
                out.copy_from_slice(&s.map(|s| (s / n_rows as f64) as f32));
            }
        }
    }
}

/// FLAP's shares to leave out by block, attention and MLP of each layer: one threshold over the standardised scores of all
/// blocks, where a head weighs as many channels as its multiplications at `n_tokens` tokens. `ratio` is the share over all;
/// `scores` holds, for each pruned block, the scores of its *channels*.
pub fn flap_shares(dims: &Dims, ratio: f64, n_tokens: usize, scores: &[(Block, Vec<f32>)]) -> Vec<[f64; 2]> {
    let t = n_tokens as f64;
    let h = dims.n_embd as f64;
    let channel_weight = |layer: &LayerDims| layer.n_ff_matrices as f64 * t * h;
    let head_weight = |layer: &LayerDims| {
        let d = layer.n_embd_head as f64;
        let matrices = if layer.n_head == layer.n_head_kv { 4.0 } else { 2.0 };
        matrices * t * h * d + 2.0 * t * t * d
    };
    let scores = scores.iter().filter(|(block, _)| !block.is_whole(dims));
    let standardised = scores.map(|(block, scores)| {
        let n = scores.len() as f64;
        let mean = scores.iter().map(|&s| f64::from(s)).sum::<f64>() / n;
        let variance = scores.iter().map(|&s| (f64::from(s) - mean).powi(2)).sum::<f64>() / (n - 1.0).max(1.0);
        let deviation = if variance > 0.0 { variance.sqrt() } else { 1.0 };
        let z: Vec<f64> = scores.iter().map(|&s| (f64::from(s) - mean) / deviation).collect();
        let layer = &dims.layers[block.il];
        let (units, weight) = match block.kind {
            BlockKind::Mlp => (z, channel_weight(layer)),
            BlockKind::Attn => {
                let width = layer.n_embd_head;
                (z.chunks_exact(width).map(|c| c.iter().sum::<f64>() / width as f64).collect(), head_weight(layer))
            }
        };
        (*block, units, weight)
    });
    let blocks: Vec<(Block, Vec<f64>, f64)> = standardised.collect();
    let mut pool: Vec<(f64, f64)> =
        blocks.iter().flat_map(|(_, units, weight)| units.iter().map(|&u| (u, *weight))).collect();
    pool.sort_by(|a, b| a.0.total_cmp(&b.0));
    let total: f64 = pool.iter().map(|p| p.1).sum();
    let mut sum = 0.0;
    // The first score whose running weight is more than the share.
    let threshold = pool.iter().find(|(_, weight)| {
        sum += weight;
        sum > total * ratio
    });
    let threshold = threshold.map_or(f64::INFINITY, |t| t.0);
    let mut shares = vec![[0.0; 2]; dims.n_layer()];
    for (block, units, _) in &blocks {
        let below = units.iter().filter(|&&u| u <= threshold).count();
        shares[block.il][block.kind as usize] = below as f64 / units.len() as f64;
    }
    shares
}

/// A matrix times a vector, `[n_out]`, in doubles: FLAP's compensation of what was left out.
pub fn multiply(matrix: &Matrix, x: &[f32]) -> Vec<f32> {
    let mut row = vec![0.0f32; matrix.n_in()];
    (0..matrix.n_out())
        .map(|j| {
            dequantize_row(matrix.ty(), matrix.row(j), &mut row);
            row.iter().zip(x).map(|(&w, &x)| f64::from(w) * f64::from(x)).sum::<f64>() as f32
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formulas() {
        // One channel with energy 4 and the weights 1, -2: fourth powers 17, squares 5, magnitudes 3.
        let matrix = Matrix::from_rows(&[&[1.0], &[-2.0]]);
        let constants = |f: Formula| f.constants(&matrix, 2);
        assert_eq!(constants(Formula::Ppsp), [17.0f32.sqrt()]);
        assert_eq!(constants(Formula::Normalised), [5.0f32.sqrt()]);
        assert_eq!(constants(Formula::WandaSp), [3.0]);
        assert_eq!(constants(Formula::Flap), [5.0]);
        assert_eq!(Formula::WandaSp.score(&[4.0], &[3.0]), 6.0);
        assert_eq!(Formula::Flap.score(&[4.0], &[5.0]), 20.0);
        assert_eq!(Formula::Ppsp.score(&[3.0, 4.0], &[1.0, 1.0]), 5.0);
        assert_eq!(Formula::WandaSp.score(&[4.0, 9.0], &[1.0, 2.0]), 8.0);
    }

    #[test]
    fn ppsp_scores_as_the_paper_writes_them() {
        // || { a_k * W_jk^2 } || over the rows j and the channels k of a head.
        let (w, a) = ([[0.5f32, -1.5], [2.0, 0.25], [-1.0, 3.0]], [0.7f32, 1.9]);
        let matrix = Matrix::from_rows(&w.each_ref().map(|r| &r[..]));
        let constants = Formula::Ppsp.constants(&matrix, 1);
        let written: f32 = w.iter().flat_map(|r| (0..2).map(move |k| (a[k] * r[k] * r[k]).powi(2))).sum::<f32>().sqrt();
        assert!((Formula::Ppsp.score(&a, &constants) - written).abs() < 1e-5);
    }

    #[test]
    fn flap_weighs_heads_by_their_multiplications() {
        let layer = LayerDims::gated([2, 2, 4], 4);
        let dims = Dims::alike(2, 8, layer);
        // MLP of layer 0 has two weak channels, that of layer 1 three; heads are alike.
        let scores = vec![
            (Block { il: 0, kind: BlockKind::Mlp }, vec![0.0, 0.0, 9.0, 9.0]),
            (Block { il: 1, kind: BlockKind::Mlp }, vec![0.0, 0.1, 0.0, 9.0]),
        ];
        let shares = flap_shares(&dims, 0.2, 16, &scores);
        // z of layer 0: -0.87 twice; of layer 1: -0.51, -0.49, -0.51. A fifth of eight is one: the second weakest decides.
        assert_eq!(shares, [[0.0, 0.5], [0.0, 0.0]]);
        let shares = flap_shares(&dims, 0.5, 16, &scores);
        assert_eq!(shares, [[0.0, 0.5], [0.0, 0.75]]);
    }
}
