//! Historical states: running means of squares of the input of each block's last matrix.

/// History of one block: `[n_pos, n_channels]`, position by position; one row if it does not tell positions apart.
#[derive(Debug, Clone, PartialEq)]
pub struct History {
    n_channels: usize,
    h: Vec<f32>,
}

impl History {
    /// A history that begins with these means.
    ///
    /// # Panics
    /// If there is not a whole number of rows, or none.
    pub fn new(n_channels: usize, h: Vec<f32>) -> History {
        assert!(!h.is_empty() && h.len().is_multiple_of(n_channels), "whole rows of {n_channels}");
        History { n_channels, h }
    }

    /// Means at a position; `None` for a history that tells no positions apart.
    pub fn row(&self, pos: Option<usize>) -> &[f32] {
        let start = pos.unwrap_or(0) * self.n_channels;
        &self.h[start..start + self.n_channels]
    }

    /// All means, position by position.
    pub fn means(&self) -> &[f32] {
        &self.h
    }

    /// Takes in a batch's full inference by an exponential moving average: only the channels that were computed change.
    /// `energy` holds means of squares over the batch, `[n_rows, channels.len()]`, for the rows from `first` on.
    pub fn update(&mut self, momentum: f32, first: usize, channels: &[usize], energy: &[f32]) {
        for (row, energy) in energy.chunks_exact(channels.len()).enumerate() {
            let start = (first + row) * self.n_channels;
            for (&k, &e) in channels.iter().zip(energy) {
                let h = &mut self.h[start + k];
                *h = momentum * *h + (1.0 - momentum) * e;
            }
        }
    }
}

/// Importance-scaled fusion of the probe's energy `p` and the history `h`: the larger of the two weighs more,
/// `(p^2 + h^2) / (p + h)`, written as the paper does.
pub fn fuse(p: f32, h: f32) -> f32 {
    let rho = p / (p + h + 1e-6);
    (1.0 - rho) * h + rho * p
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figure_1_fusion() {
        let (probe, history) = ([[3.0, 1.0], [0.0, 2.0]], [[1.0, 1.0], [2.0, 3.0]]);
        let fused: Vec<f32> = (0..4).map(|i| fuse(probe[i / 2][i % 2], history[i / 2][i % 2])).collect();
        for (got, want) in fused.iter().zip([2.5, 1.0, 2.0, 2.6]) {
            assert!((got - want).abs() < 1e-5, "{fused:?}");
        }
        assert_eq!(fuse(0.0, 0.0), 0.0);
    }

    #[test]
    fn only_kept_channels_of_the_batchs_positions_move() {
        let mut h = History::new(3, vec![1.0; 9]);
        h.update(0.75, 1, &[0, 2], &[5.0, 9.0]);
        assert_eq!(h.row(Some(0)), [1.0; 3]);
        assert_eq!(h.row(Some(1)), [2.0, 1.0, 3.0]);
        assert_eq!(h.row(Some(2)), [1.0; 3]);
        h.update(1.0, 0, &[1], &[100.0]);
        assert_eq!(h.row(None), [1.0; 3]);
    }
}
