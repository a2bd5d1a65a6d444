//! The stages of the pass in operations that every backend of ggml has, so that a block that a GPU computes is pruned there, without the host.
//!
//! Each has a form of our own beside it, an operation of its own kind in `probe`, `score`, `select`, `left_out` and `reduce`, which is what
//! the CPU computes. Both choose the same units but for equal scores, of which a device may take any. Sums are of 32-bit floats here.

use std::ops::Range;

use ggml::{Builder, Tensor, Type};

use super::probe::{FIRST_IS_IN, ProbeShape};
use super::resident::ResidentBlock;
use super::score::Formula;

/// What [`scores`] are made of, beside the probe's states.
pub struct Scoring<'a, 'g> {
    /// How to score
    pub formula: Formula,
    /// Channels of a unit
    pub width: usize,
    /// The block's numbers
    pub block: &'a ResidentBlock,
    /// Rows of each sample in the probe, if the history tells positions apart: then their positions I32 `[n_rows]`
    pub by_position: Option<(usize, Tensor<'g>)>,
    /// F32 `[1, n_rows]`: which rows are text, if some are not
    pub text: Option<Tensor<'g>>,
}

/// `[n, m]` -> `[m, n]`, F32 and contiguous.
fn transposed<'g>(g: &Builder<'g>, a: Tensor<'g>) -> Tensor<'g> {
    let [n, m, ..] = a.ne();
    if n == 1 || m == 1 {
        return g.reshape(a, [m, n, 1, 1]);
    }
    g.cont(g.permute(a, [1, 0, 2, 3]), [m, n, 1, 1])
}

/// `[n, m]` -> `[n]`: the sum of each column.
fn sum_columns<'g>(g: &Builder<'g>, a: Tensor<'g>) -> Tensor<'g> {
    let [n, m, ..] = a.ne();
    match m {
        1 => g.reshape(a, [n, 1, 1, 1]),
        _ => g.reshape(g.sum_rows(transposed(g, a)), [n, 1, 1, 1]),
    }
}

/// `[n, n_each * n_seq]`, sample by sample -> `[n, n_each]`: the sum over samples.
fn sum_samples<'g>(g: &Builder<'g>, a: Tensor<'g>, n_seq: usize) -> Tensor<'g> {
    let [n, n_rows, ..] = a.ne();
    let n_each = n_rows / n_seq;
    let by_position = g.reshape(a, [n * n_each, n_seq, 1, 1]);
    g.reshape(sum_columns(g, by_position), [n, n_each, 1, 1])
}

/// Numbers I32 `[n]`, below 2^24, in ascending order, as F32 `[n]`.
fn ascending<'g>(g: &Builder<'g>, ids: Tensor<'g>) -> Tensor<'g> {
    let n = ids.ne()[0];
    let floats = g.cast(ids, Type::F32);
    let order = g.argsort(floats, false);
    g.reshape(g.get_rows(g.reshape(floats, [1, n, 1, 1]), order), [n, 1, 1, 1])
}

/// The numbers I32 `[n]` of the `n` largest of values F32 `[m]`.
fn largest<'g>(g: &Builder<'g>, values: Tensor<'g>, n: usize) -> Tensor<'g> {
    let order = g.argsort(values, true);
    let row = order.nb()[1];
    g.view(order, [n, 1, 1, 1], [row; 3], 0)
}

/// Whole numbers F32 as I32.
fn numbers<'g>(g: &Builder<'g>, floats: Tensor<'g>) -> Tensor<'g> {
    g.cast(floats, Type::I32)
}

/// Stage pick: the rows I32 `[n_rows]` of the probe of largest residual importance among the rows of `x` `[n_embd, n_tokens]` from `first` on,
/// which are `n_each` of each of `n_seq` samples.
pub fn pick<'g>(
    g: &Builder<'g>,
    x: Tensor<'g>,
    probe: ProbeShape,
    first: usize,
    [n_seq, n_each]: [usize; 2],
) -> Tensor<'g> {
    let squares = g.sum_rows(g.sqr(x));
    let row = squares.nb()[1];
    let squares =
        g.view(squares, [1, n_seq * n_each, 1, 1], [row, row * n_seq * n_each, row * n_seq * n_each], row * first);
    let by_sample = g.reshape(squares, [n_each, n_seq, 1, 1]);
    let mut tokens = ascending(g, largest(g, sum_columns(g, by_sample), probe.n_each));
    if probe.n_each <= FIRST_IS_IN {
        let later = probe.n_each - 1;
        let zero = g.zeros([1, 1, 1, 1]);
        let row = tokens.nb()[1];
        tokens = match later {
            0 => zero,
            _ => g.concat(zero, g.view(tokens, [later, 1, 1, 1], [row; 3], 4), 0),
        };
    }
    if n_seq == 1 {
        return numbers(g, g.scale_and_shift(tokens, 1.0, first as f32));
    }
    let of_tokens = g.get_rows(transposed(g, by_sample), numbers(g, tokens));
    let samples = ascending(g, largest(g, sum_columns(g, of_tokens), probe.n_seq));
    let starts = g.scale_and_shift(samples, n_each as f32, first as f32);
    let column = g.reshape(tokens, [probe.n_each, 1, 1, 1]);
    let repeated = g.add(g.zeros([probe.n_each, probe.n_seq, 1, 1]), column);
    let rows = g.add(repeated, g.reshape(starts, [1, probe.n_seq, 1, 1]));
    g.reshape(numbers(g, rows), [probe.n_rows(), 1, 1, 1])
}

/// Sums F32 `[n, m]` as means: over `n_rows` rows, or over those that are text, of which F32 `[1, m]` has the number.
fn mean<'g>(g: &Builder<'g>, sums: Tensor<'g>, n_rows: usize, n_text: Option<Tensor<'g>>) -> Tensor<'g> {
    match n_text {
        None if n_rows == 1 => sums,
        None => g.scale(sums, 1.0 / n_rows as f32),
        // As in the paper's code there is a thousandth more, so that nothing is divided by none.
        Some(n) => g.div(sums, g.scale_and_shift(n, 1.0, 1e-3)),
    }
}

/// Stage history: the fusion of the probe's energy `p` with the history `h`, both F32 of one shape. The formula is that of `history::fuse`.
fn fuse<'g>(g: &Builder<'g>, p: Tensor<'g>, h: Tensor<'g>) -> Tensor<'g> {
    let rho = g.div(p, g.scale_and_shift(g.add(p, h), 1.0, 1e-6));
    g.add(g.mul(g.scale_and_shift(rho, -1.0, 1.0), h), g.mul(rho, p))
}

/// Energy F32 `[n_channels]` of states `[n_channels, n_rows]`: means of squares over all rows or those that are text.
fn energy_of<'g>(g: &Builder<'g>, states: Tensor<'g>, text: Option<Tensor<'g>>) -> Tensor<'g> {
    let n_rows = states.ne()[1];
    let n_text = text.map(|text| g.sum_rows(g.reshape(text, [n_rows, 1, 1, 1])));
    mean(g, sum_columns(g, g.sqr(states)), n_rows, n_text)
}

/// Stage score: from the probe's states F32 `[n_channels, n_rows]` to scores F32 `[1, n_units]`. `leaf` makes a tensor of the graph of one
/// of the block's numbers.
pub fn scores<'g>(
    g: &Builder<'g>,
    states: Tensor<'g>,
    how: Scoring<'_, 'g>,
    leaf: &dyn Fn(ggml::TensorId) -> Tensor<'g>,
) -> Tensor<'g> {
    let [n_channels, n_rows, ..] = states.ne();
    let history = how.block.history.map(leaf);
    let mut energy = match (history, how.by_position) {
        (Some(history), Some((n_each, pos))) => {
            let n_seq = n_rows / n_each;
            let n_text = how.text.map(|text| sum_samples(g, text, n_seq));
            let p = mean(g, sum_samples(g, g.sqr(states), n_seq), n_seq, n_text);
            let row = pos.nb()[1];
            let h = g.get_rows(history, g.view(pos, [n_each, 1, 1, 1], [row; 3], 0));
            sum_columns(g, fuse(g, p, h))
        }
        (Some(history), None) => fuse(g, energy_of(g, states, how.text), g.reshape(history, [n_channels, 1, 1, 1])),
        (None, _) => energy_of(g, states, how.text),
    };
    if let Some(prior) = how.block.prior {
        energy = g.add(energy, leaf(prior));
    }
    let constants = leaf(how.block.constants.expect("a block that is probed"));
    let n_units = n_channels / how.width;
    let by_unit = |t| g.reshape(t, [how.width, n_units, 1, 1]);
    match how.formula {
        Formula::Ppsp | Formula::Normalised if how.width == 1 => {
            g.reshape(g.mul(energy, constants), [1, n_units, 1, 1])
        }
        Formula::Ppsp | Formula::Normalised => g.sqrt(g.sum_rows(by_unit(g.sqr(g.mul(energy, constants))))),
        Formula::WandaSp => g.sum_rows(by_unit(g.mul(g.sqrt(energy), constants))),
        Formula::Flap => g.sum_rows(by_unit(g.mul(energy, constants))),
    }
}

/// Stage select: the kept units I32 `[n]`, ascending, by scores F32 `[1, n_units]`.
pub fn select<'g>(g: &Builder<'g>, scores: Tensor<'g>, n: usize) -> Tensor<'g> {
    let scores = g.reshape(scores, [scores.ne()[1], 1, 1, 1]);
    numbers(g, ascending(g, largest(g, scores, n)))
}

/// States F32 `[n_channels, n_rows]` -> F32 `[1, n_channels]`: as `score::Energy`.
pub fn energy<'g>(g: &Builder<'g>, states: Tensor<'g>, text: Option<Tensor<'g>>) -> Tensor<'g> {
    g.reshape(energy_of(g, states, text), [1, states.ne()[0], 1, 1])
}

/// States F32 `[n_channels, n_seq * n_each]` -> F32 `[n_channels, n_each]`: as `score::EnergyByPosition`.
pub fn energy_by_position<'g>(
    g: &Builder<'g>,
    states: Tensor<'g>,
    text: Option<Tensor<'g>>,
    n_seq: usize,
) -> Tensor<'g> {
    let n_text = text.map(|text| sum_samples(g, text, n_seq));
    mean(g, sum_samples(g, g.sqr(states), n_seq), n_seq, n_text)
}

/// States F32 `[n_channels, n_rows]` -> F32 `[2, n_channels]`: as `score::Moments`.
pub fn moments<'g>(g: &Builder<'g>, states: Tensor<'g>) -> Tensor<'g> {
    let [n_channels, n_rows, ..] = states.ne();
    let means = [states, g.sqr(states)].map(|t| {
        let mean = g.scale(sum_columns(g, t), 1.0 / n_rows as f32);
        g.reshape(mean, [1, n_channels, 1, 1])
    });
    g.concat(means[0], means[1], 0)
}

/// States F32 `[n_channels, n_rows]` and kept channels I32 `[n_kept]` -> F32 `[n_channels, 1]`: as `left_out::MeanLeftOut`.
pub fn mean_left_out<'g>(g: &Builder<'g>, states: Tensor<'g>, kept: Tensor<'g>) -> Tensor<'g> {
    let [n_channels, n_rows, ..] = states.ne();
    let mean = g.scale(sum_columns(g, states), 1.0 / n_rows as f32);
    let mean = g.reshape(mean, [1, n_channels, 1, 1]);
    let without = g.set_rows(mean, g.zeros([1, kept.ne()[0], 1, 1]), kept);
    g.reshape(without, [n_channels, 1, 1, 1])
}

/// ggml's Vulkan backend copies no more of a row of 32-bit words: it begins as many invocations as each had two words to copy, and each
/// copies one.
const MOST_WORDS: usize = 512;

/// Numbers I32 `[n]` of units that lie in `parts` each, as the numbers of all of these parts I32 `[n * parts]`.
fn in_parts<'g>(g: &Builder<'g>, units: Tensor<'g>, parts: usize) -> Tensor<'g> {
    if parts == 1 {
        return units;
    }
    let n = units.ne()[0];
    let first = g.reshape(g.scale(g.cast(units, Type::F32), parts as f32), [1, n, 1, 1]);
    let repeated = g.add(g.zeros([parts, n, 1, 1]), first);
    numbers(g, g.reshape(g.add(repeated, g.arange(parts)), [n * parts, 1, 1, 1]))
}

/// Stage reduce, rows: the rows of kept units I32 `[n_kept]`, `width` each, of those in the range `rows` of a matrix `[n_in, ..]` of the
/// weights: `[n_in, n_kept * width]`.
///
/// Of a quantised type they are copied as they are, as 32-bit words, which every backend gathers. Where the bytes of a unit are no such words,
/// there are too many of them to number, or the device reads beyond a matrix's end, they become floats of 16 bits.
pub fn gather_rows<'g>(
    g: &Builder<'g>,
    matrix: Tensor<'g>,
    rows: Range<usize>,
    kept: Tensor<'g>,
    width: usize,
) -> Tensor<'g> {
    let (ty, [n_in, ..], row) = (matrix.ty(), matrix.ne(), matrix.nb()[1]);
    let (unit, n_units, n) = (row * width, rows.len() / width, kept.ne()[0] * width);
    let part = g.view(matrix, [n_in, rows.len(), 1, 1], [row, row * rows.len(), row * rows.len()], row * rows.start);
    let is_whole = unit.is_multiple_of(4) && !matrix.is_padded();
    let n_parts = (1..=unit / 4).find(|n| (unit / 4).is_multiple_of(*n) && unit / 4 / n <= MOST_WORDS);
    if let Some(n_parts) = n_parts.filter(|n| ty.is_quantized() && is_whole && n * n_units <= 1 << 24) {
        let words = g.reinterpret(part, Type::I32, [unit / 4 / n_parts, n_parts * n_units, 1, 1]);
        return g.reinterpret(g.get_rows(words, in_parts(g, kept, n_parts)), ty, [n_in, n, 1, 1]);
    }
    let floats = g.get_rows(g.reshape(part, [n_in * width, n_units, 1, 1]), kept);
    let floats = g.reshape(floats, [n_in, n, 1, 1]);
    match ty {
        Type::F32 => floats,
        _ if ty.is_quantized() => g.cast(floats, Type::F16),
        _ => g.cast(floats, ty),
    }
}

/// Stage reduce, columns: those of kept units I32 `[n_kept]`, `width` each, of the matrix whose columns are the rows of `columns`
/// `[n_out, n_channels]`: `[n_kept * width, n_out]`.
pub fn gather_columns<'g>(g: &Builder<'g>, columns: Tensor<'g>, kept: Tensor<'g>, width: usize) -> Tensor<'g> {
    let [n_out, n_channels, ..] = columns.ne();
    let n = kept.ne()[0] * width;
    let units = g.reshape(columns, [n_out * width, n_channels / width, 1, 1]);
    let gathered = g.reshape(g.get_rows(units, kept), [n_out, n, 1, 1]);
    let across = g.permute(gathered, [1, 0, 2, 3]);
    match columns.ty() {
        Type::F32 => g.cont(across, [n, n_out, 1, 1]),
        ty if ty.is_quantized() => g.cast(across, Type::F16),
        ty => g.cast(across, ty),
    }
}

/// `[d, n_head, n]` -> `[d * n, n_head]`, contiguous: head by head.
fn by_head<'g>(g: &Builder<'g>, heads: Tensor<'g>) -> Tensor<'g> {
    let [d, n_head, n, _] = heads.ne();
    g.cont(g.permute(heads, [0, 2, 1, 3]), [d * n, n_head, 1, 1])
}

/// Heads F32 `[d, n_head, n]` and kept ones I32 `[n_kept]` -> `[d, n_kept, n]`.
pub fn gather_heads<'g>(g: &Builder<'g>, heads: Tensor<'g>, kept: Tensor<'g>) -> Tensor<'g> {
    let ([d, _, n, _], n_kept) = (heads.ne(), kept.ne()[0]);
    let gathered = g.reshape(g.get_rows(by_head(g, heads), kept), [d, n, n_kept, 1]);
    g.cont(g.permute(gathered, [0, 2, 1, 3]), [d, n_kept, n, 1])
}

/// Kept heads F32 `[d, n_kept, n]` and their numbers I32 `[n_kept]` -> `[d, n_head, n]`: as `reduce::SpreadHeads`.
pub fn spread_heads<'g>(g: &Builder<'g>, heads: Tensor<'g>, kept: Tensor<'g>, n_head: usize) -> Tensor<'g> {
    let [d, _, n, _] = heads.ne();
    let all = g.set_rows(g.zeros([d * n, n_head, 1, 1]), by_head(g, heads), kept);
    let all = g.reshape(all, [d, n, n_head, 1]);
    g.cont(g.permute(all, [0, 2, 1, 3]), [d, n_head, n, 1])
}
