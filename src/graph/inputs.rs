//! Inputs of a graph: each is made when something first reads it, and knows how to set itself for a batch.

use std::ops::Range;

use ggml::{Builder, F16, Schedule, Slot, Tensor, Type};

use super::batch::{Batch, Layout, Pieces, Row};
use super::kv_cache::KvCache;
use crate::prune::{Block, Masks, ProbeShape, evenly};
use crate::weights::Temperature;

/// Something that is set before a graph is computed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Input {
    /// I32 `[n_tokens]`: numbers in the vocabulary
    Tokens,
    /// I32 `[n_tokens]`
    Positions,
    /// F32 `[1, n_tokens]`: what the positions' temperature multiplies queries with
    Temperatures(Temperature),
    /// I64 `[n_tokens]`: cells that keys are written to
    KeyCells,
    /// I64: rows that values are written to, so many of each token, see [`KvCache::value_ids`]
    ValueCells(usize),
    /// F16 (flash attention) or F32 `[n_kv, n_each, 1, n_seq]`: the cells that each row of equal pieces looks at, in a window of so many
    Mask(Option<usize>),
    /// The same of one piece among others, `[n_kv, n]`
    PieceMask(usize, Option<usize>),
    /// I32 `[3, n]`: of each of these rows its sequence, the first cell that it looks at, in a window of so many, and the one after the
    /// last
    Sights(Rows, Option<usize>),
    /// I32 `[n]`: some rows of the batch
    Numbers(Rows),
    /// I32 `[n_rows]`: a probe's rows, at even distances among those that are not dense
    ProbeRows(ProbeShape),
    /// F16 (flash attention) or F32 `[n, n]`: causal mask among the `n` rows of a probe's sample
    ProbeMask(usize),
    /// F32 `[1, n_tokens]`: 1 for rows that are text, 0 for those that fill up
    Text,
    /// I32 `[n]`: the units of a block that are kept
    Kept(Block, usize),
}

/// Some rows of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rows {
    /// All
    All,
    /// Those whose results are wanted
    Wanted,
    /// Those that run on all weights, whatever is pruned
    Dense,
}

impl Rows {
    /// How many they are.
    fn count(self, layout: &Layout) -> usize {
        match self {
            Rows::All => layout.n_tokens(),
            Rows::Wanted => layout.n_wanted,
            Rows::Dense => layout.n_dense(),
        }
    }

    /// Their numbers.
    fn of(self, batch: &Batch) -> Vec<usize> {
        let [first, last] = batch.dense;
        let n = batch.rows.len();
        let has = |&i: &usize| match self {
            Rows::All => true,
            Rows::Wanted => batch.rows[i].wanted,
            Rows::Dense => i < first || i >= n - last,
        };
        (0..n).filter(has).collect()
    }
}

/// What inputs are set to.
#[derive(Debug, Clone, Copy)]
pub struct Feed<'a> {
    /// The rows
    pub batch: &'a Batch,
    /// Their layout
    pub layout: &'a Layout,
    /// Where their keys and values go
    pub cache: &'a KvCache,
    /// The units that are kept, where they are given
    pub given: Option<&'a Masks>,
}

impl Input {
    /// Name in dumps, type and shape.
    fn tensor(self, layout: &Layout, cache: &KvCache) -> (&'static str, Type, [usize; 4]) {
        let n = layout.n_tokens();
        let flash_attn = cache.params().flash_attn;
        let mask_type = if flash_attn { Type::F16 } else { Type::F32 };
        let vector = |n: usize| [n, 1, 1, 1];
        match self {
            Input::Tokens => ("inp_tokens", Type::I32, vector(n)),
            Input::Positions => ("inp_pos", Type::I32, vector(n)),
            Input::Temperatures(_) => ("attn_temperatures", Type::F32, [1, n, 1, 1]),
            Input::KeyCells => ("attn_inp_k_idxs", Type::I64, vector(n)),
            Input::ValueCells(n_rows) => ("attn_inp_v_idxs", Type::I64, vector(n * n_rows)),
            Input::Mask(_) => {
                let (n_seq, n_each) = layout.samples();
                ("attn_inp_kq_mask", mask_type, [layout.n_kv, n_each, 1, n_seq])
            }
            Input::PieceMask(i, _) => ("attn_inp_kq_mask", mask_type, [layout.n_kv, piece(layout, i).len(), 1, 1]),
            Input::Sights(rows, _) => ("attn_inp_sights", Type::I32, [3, rows.count(layout), 1, 1]),
            Input::Numbers(rows) => ("out_ids", Type::I32, vector(rows.count(layout))),
            Input::ProbeRows(probe) => ("prune_probe_rows", Type::I32, vector(probe.n_rows())),
            Input::ProbeMask(n) => ("prune_probe_mask", mask_type, [n, n, 1, 1]),
            Input::Text => ("prune_text", Type::F32, [1, n, 1, 1]),
            Input::Kept(_, n) => ("prune_kept", Type::I32, vector(n)),
        }
    }

    /// Sets it. `Err` if the units that are given for a block are not as many as the graph was made for.
    fn set(self, slot: Slot, to: &mut Schedule, feed: Feed) -> Result<(), Block> {
        let Feed { batch, layout, cache, given } = feed;
        let rows = &batch.rows;
        let numbers = |of: &dyn Fn(&Row) -> i32| rows.iter().map(of).collect::<Vec<i32>>();
        match self {
            Input::Tokens => to.set(slot, &numbers(&|r| r.token)),
            Input::Positions => to.set(slot, &numbers(&|r| r.pos as i32)),
            Input::Temperatures(Temperature { scale, length }) => {
                let factor = |r: &Row| 1.0 + scale * (1.0 + (r.pos as u32 / length) as f32).ln();
                to.set(slot, &rows.iter().map(factor).collect::<Vec<f32>>());
            }
            Input::KeyCells => to.set(slot, &cells(rows, cache)),
            Input::ValueCells(n_rows) => to.set(slot, &cache.value_ids(&cells(rows, cache), n_rows)),
            Input::Mask(window) => set_mask(slot, to, cache, layout.n_kv, window, rows.iter().map(|r| r.pos)),
            Input::PieceMask(i, window) => {
                set_mask(slot, to, cache, layout.n_kv, window, rows[piece(layout, i)].iter().map(|r| r.pos));
            }
            Input::Sights(which, window) => {
                let sight = |i: usize| {
                    let cells = visible(rows[i].pos, window);
                    [rows[i].seq, cells.start, cells.end].map(|n| n as i32)
                };
                let sights: Vec<i32> = which.of(batch).into_iter().flat_map(sight).collect();
                to.set(slot, &sights);
            }
            Input::Numbers(rows) => to.set(slot, &rows.of(batch).into_iter().map(|i| i as i32).collect::<Vec<i32>>()),
            Input::ProbeRows(probe) => {
                let (n_seq, n_each) = layout.samples();
                let first = layout.dense[0] as i32;
                let rows = evenly(probe, n_seq, n_each - layout.n_dense());
                to.set(slot, &rows.into_iter().map(|i| i + first).collect::<Vec<i32>>());
            }
            Input::ProbeMask(n) => set_mask(slot, to, cache, n, None, 0..n),
            Input::Text => {
                let n_each = layout.samples().1;
                let of_seq = |&n: &usize| (0..n_each).map(move |i| if i < n { 1.0f32 } else { 0.0 });
                to.set(slot, &batch.n_text.iter().flat_map(of_seq).collect::<Vec<f32>>());
            }
            Input::Kept(block, n) => {
                let kept = given.and_then(|masks| masks.get(&block)).filter(|kept| kept.len() == n);
                to.set(slot, kept.ok_or(block)?);
            }
        }
        Ok(())
    }
}

/// The rows of a piece.
fn piece(layout: &Layout, i: usize) -> Range<usize> {
    let Pieces::Any(pieces) = &layout.pieces else { panic!("equal pieces have one mask") };
    let start = pieces[..i].iter().map(|p| p.1).sum();
    start..start + pieces[i].1
}

/// Cells counted through all sequences.
fn cells(rows: &[Row], cache: &KvCache) -> Vec<i64> {
    let n_cells = cache.params().n_cells;
    rows.iter().map(|r| (r.seq * n_cells + r.pos) as i64).collect()
}

/// The cells that a row at a position looks at: those up to its own, in a window of so many.
fn visible(pos: usize, window: Option<usize>) -> Range<usize> {
    window.map_or(0, |n| (pos + 1).saturating_sub(n))..pos + 1
}

/// Sets a mask of `n_kv` cells for each of the rows at these positions.
fn set_mask(
    slot: Slot,
    to: &mut Schedule,
    cache: &KvCache,
    n_kv: usize,
    window: Option<usize>,
    positions: impl Iterator<Item = usize>,
) {
    fn masks<T: Copy>(n_kv: usize, sights: &[Range<usize>], keep: T, drop: T) -> Vec<T> {
        let mut mask = vec![drop; n_kv * sights.len()];
        mask.chunks_exact_mut(n_kv).zip(sights).for_each(|(row, sight)| row[sight.clone()].fill(keep));
        mask
    }
    let sights: Vec<Range<usize>> = positions.map(|pos| visible(pos, window)).collect();
    match cache.params().flash_attn {
        true => to.set(slot, &masks(n_kv, &sights, F16(0), F16(0xfc00))),
        false => to.set(slot, &masks(n_kv, &sights, 0.0, f32::NEG_INFINITY)),
    }
}

/// The inputs of a graph under construction.
#[derive(Debug)]
pub struct Inputs<'a, 'g> {
    g: &'a Builder<'g>,
    layout: &'a Layout,
    cache: &'a KvCache,
    made: Vec<(Input, Tensor<'g>, Slot)>,
}

impl<'a, 'g> Inputs<'a, 'g> {
    /// None yet.
    pub fn new(g: &'a Builder<'g>, layout: &'a Layout, cache: &'a KvCache) -> Inputs<'a, 'g> {
        Inputs { g, layout, cache, made: Vec::new() }
    }

    /// An input's tensor.
    pub fn get(&mut self, input: Input) -> Tensor<'g> {
        if let Some((_, tensor, _)) = self.made.iter().find(|m| m.0 == input) {
            return *tensor;
        }
        let (name, ty, ne) = input.tensor(self.layout, self.cache);
        let (tensor, slot) = self.g.input(name, ty, ne);
        self.made.push((input, tensor, slot));
        tensor
    }

    /// All that were made.
    pub fn finish(self) -> InputSlots {
        InputSlots(self.made.into_iter().map(|(input, _, slot)| (input, slot)).collect())
    }
}

/// The inputs of a graph.
#[derive(Debug)]
pub struct InputSlots(Vec<(Input, Slot)>);

impl InputSlots {
    /// Sets all of them. `Err` names a block whose given units are not as many as the graph was made for.
    pub fn set(&self, to: &mut Schedule, feed: Feed) -> Result<(), Block> {
        self.0.iter().try_for_each(|&(input, slot)| input.set(slot, to, feed))
    }
}
