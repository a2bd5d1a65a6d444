//! What stands in for the channels that a batch leaves out: their mean over the probe.

use ggml::{Op, Parts, Source};

/// Probe's states F32 `[n_channels, n_rows]` and kept channels I32 `[n_kept]` -> F32 `[n_channels, 1]`: the mean of each channel over the
/// rows, and 0 for those that are kept. (FLAP, arXiv 2312.11983, has means of a calibration there.)
#[derive(Debug)]
pub struct MeanLeftOut;

impl Op for MeanLeftOut {
    fn compute(&self, sources: &[Source], parts: &mut Parts) {
        while let Some(mut out) = parts.next() {
            let out = out.elements::<f32>();
            let n_rows = sources[0].ne()[1];
            out.fill(0.0);
            for row in 0..n_rows {
                out.iter_mut().zip(sources[0].row::<f32>(row)).for_each(|(o, x)| *o += x);
            }
            out.iter_mut().for_each(|o| *o /= n_rows as f32);
            sources[1].row::<i32>(0).iter().for_each(|&k| out[k as usize] = 0.0);
        }
    }
}
