//! Operations of a graph that multiply weights with our own kernels: straight from the file's rows, in 8 bits.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use ggml::{Division, Op, Pages, Part, Parts, Source, TensorId, Type, dequantize_row};
use kernels::{Acts, Cells, ColumnLayout, Columns, FEW, Few, Format, Isa, Out, Query, Row, token_bytes};

use crate::prune::reduce::Matrix;

/// What our kernels multiply, and when.
#[derive(Debug)]
pub struct Native {
    /// The weights that they can multiply; and whether a few tokens, without packing
    pub weights: HashMap<TensorId, bool>,
    /// The weights that stay packed
    pub resident: HashMap<TensorId, Panels>,
    /// What prompts take
    pub clock: Arc<Clock>,
}

/// Time in nanoseconds that prompts have taken so far for what is not the product itself.
#[derive(Debug, Default)]
pub struct Clock {
    /// Of probes, from the first node to the choice of what is kept
    pub probe: AtomicI64,
    /// Of packing the batch's weights, summed over threads
    pub pack: AtomicI64,
}

/// A matrix in panels.
#[derive(Debug, Clone)]
pub struct Panels {
    /// Where they are
    pub pages: Arc<Pages>,
    /// Where in these
    pub range: Range<usize>,
}

/// Marks a moment of a graph: its result, one number, is of no use. A clock that runs backwards at the start of something and forwards
/// at its end has its length.
#[derive(Debug)]
pub struct Mark {
    /// The clock
    pub clock: Arc<Clock>,
    /// The probe begins
    pub start: bool,
}

impl Op for Mark {
    fn compute(&self, _sources: &[Source], parts: &mut Parts) {
        static ORIGIN: OnceLock<Instant> = OnceLock::new();
        while let Some(mut out) = parts.next() {
            let now = ORIGIN.get_or_init(Instant::now).elapsed().as_nanos() as i64;
            self.clock.probe.fetch_add(if self.start { -now } else { now }, Ordering::Relaxed);
            out.elements::<f32>().fill(0.0);
        }
    }
}

impl Native {
    /// Whether they compute the attention of a layer with these queries' weights.
    pub fn attends(&self, q: &TensorId) -> bool {
        self.weights.contains_key(q)
    }

    /// Whether they multiply a weight with `n` tokens.
    pub fn multiplies(&self, weight: &TensorId, n: usize) -> bool {
        self.weights.get(weight).is_some_and(|&direct| direct || n > FEW)
    }
}

/// A matrix of a product: all its rows, or those of the units that the product's ids name.
#[derive(Debug, Clone)]
pub struct Factor {
    /// The weights
    pub matrix: Matrix,
    /// Rows of a unit, if kept units are multiplied only
    pub kept: Option<usize>,
    /// All rows, packed before
    pub resident: Option<Panels>,
}

/// Whether the kernels multiply rows of this type where they are.
pub fn is_direct(ty: Type) -> bool {
    format(ty).is_some()
}

/// Words of a token's activations: what [`Quantize`] makes is I32 `[words(k), n_tokens]`.
pub fn words(k: usize) -> usize {
    token_bytes(k) / 4
}

/// `x` F32 `[k, n_tokens]` -> I32 `[words(k), n_tokens]`: its activations in 8 bits; with a gain F32 `[k]` as second source, of the
/// RMS norm of `x` times the gain.
#[derive(Debug)]
pub struct Quantize {
    /// Of the norm
    pub eps: f32,
}

impl Op for Quantize {
    fn compute(&self, sources: &[Source], parts: &mut Parts) {
        let bytes = token_bytes(sources[0].ne()[0]);
        while let Some(mut out) = parts.next() {
            for (i, out) in out.rows().zip(out.bytes().chunks_exact_mut(bytes)) {
                quantize(sources, i, self.eps, out);
            }
        }
    }
}

/// The activations of row `i`.
fn quantize(sources: &[Source], i: usize, eps: f32, out: &mut [u8]) {
    let x = sources[0].row::<f32>(i);
    match sources.get(1) {
        Some(gain) => Isa::best().norm_quantize(x, gain.row::<f32>(0), eps, out),
        None => Isa::best().quantize(x, out),
    }
}

/// Activations I32 `[words(k), n_tokens]` of [`Quantize`] (and ids I32 `[n_kept]`, if rows or columns of units are kept) -> F32
/// `[n_out, n_tokens]`: products with all factors, one below the other. Or, if `gated`, `silu(first) * second` of two factors of
/// equal shape. Where rows are read where they are, the sources are those of [`Quantize`] in place of the activations: for a few
/// tokens that costs less than a node.
#[derive(Debug)]
pub struct Product {
    /// The weights
    pub factors: Vec<Factor>,
    /// By panels, rather than by rows where they are
    pub panels: bool,
    /// `silu(first) * second`
    pub gated: bool,
    /// Columns of a unit, if kept units are multiplied only
    pub columns: Option<usize>,
    /// The next source are ids
    pub has_ids: bool,
    /// The last sources are products that some tokens have already, F32 `[n_out of all units, n_ahead]`, and these tokens' numbers, I32
    /// `[n_ahead]`: of one factor by panels, or a gated pair
    pub ahead: bool,
    /// Of the norm
    pub eps: f32,
    /// Is told of packing
    pub clock: Option<Arc<Clock>>,
}

impl Factor {
    /// Rows of the product; `n_kept` is the number of ids.
    pub fn n_out(&self, n_kept: usize) -> usize {
        self.kept.map_or(self.matrix.n_out(), |width| n_kept * width)
    }
}

/// Bytes of weights that a thread takes at once: with less, a processor that reads ahead starts anew too often.
const PART_BYTES: usize = 2 << 20;

/// Rows of `bytes` in a part of a product of a few tokens that has `n_rows`: enough to be worth the tokens' preparation, few enough for
/// threads to end together.
fn share(bytes: usize, n_rows: usize) -> usize {
    (PART_BYTES / bytes.max(1)).min(n_rows.div_ceil(4)).max(1)
}

/// The part's rows as the kernels write them.
struct Tokens<'a, 'b> {
    part: &'a mut Part<'b>,
    at: usize,
}

impl Out for Tokens<'_, '_> {
    fn token(&mut self, t: usize) -> &mut [f32] {
        &mut self.part.row(t)[self.at..]
    }
}

impl Op for Product {
    fn division(&self, ne: [usize; 4]) -> Division {
        let share = match self.panels {
            true => 1,
            false => share(self.factors[0].matrix.row(0).len(), ne[0]),
        };
        Division { rows: ne[1], columns: share.next_multiple_of(Isa::best().panel_rows()) }
    }

    fn compute(&self, sources: &[Source], parts: &mut Parts) {
        let (sources, ahead) = match sources {
            [rest @ .., states, tokens] if self.ahead => (rest, Some((states, tokens.row::<i32>(0)))),
            _ => (sources, None),
        };
        let (sources, ids): (&[Source], &[i32]) = match sources {
            [rest @ .., ids] if self.has_ids => (rest, ids.row(0)),
            _ => (sources, &[]),
        };
        let others: Vec<_> = (self.factors.iter())
            .map(|f| {
                let ty = f.matrix.ty();
                move |bytes: &[u8], out: &mut [f32]| dequantize_row(ty, bytes, out)
            })
            .collect();
        let formats: Vec<Format> =
            self.factors.iter().zip(&others).map(|(f, o)| format(f.matrix.ty()).unwrap_or(Format::Other(o))).collect();
        let rows: Vec<(&[u8], usize)> =
            self.factors.iter().map(|f| (f.matrix.bytes(), f.matrix.bytes().len() / f.matrix.n_out())).collect();
        let row = |number: usize, i: usize| {
            let i = self.factors[number].kept.map_or(i, |width| ids[i / width] as usize * width + i % width);
            let (bytes, n) = rows[number];
            Row { bytes: &bytes[i * n..][..n], format: formats[number] }
        };
        let n_in = self.factors[0].matrix.n_in();
        let columns = self.columns.map(|width| Columns::new(ids, width, n_in));
        let n = sources[0].ne()[1];
        let made = if self.panels { Vec::new() } else { few(sources, self.eps) };
        let acts = if self.panels { sources[0].all_bytes() } else { &made };
        let k = columns.as_ref().map_or(n_in, Columns::len);
        // The tokens for each factor's format, once for all parts of this thread.
        let ready: Vec<Few> = match self.panels {
            true => Vec::new(),
            false => formats.iter().map(|&format| Isa::best().few(Acts::new(acts, k), format)).collect(),
        };
        let mut is_ahead = vec![false; n];
        ahead.iter().flat_map(|a| a.1).for_each(|&t| is_ahead[t as usize] = true);
        let tokens: Vec<usize> = (0..n).filter(|&t| !is_ahead[t]).collect();
        while let Some(mut out) = parts.next() {
            // The part's share of each factor.
            let range = out.columns();
            let mut first = 0;
            for (number, factor) in self.factors.iter().enumerate() {
                let n_out = factor.n_out(ids.len());
                let share = range.start.max(first)..range.end.min(first + n_out);
                if !share.is_empty() {
                    let row = |which: usize, i: usize| row(number + which, share.start - first + i);
                    let at = share.start - range.start;
                    if self.panels {
                        let acts = Acts::new(acts, k);
                        let start = share.start - first;
                        self.many(number, row, acts, &tokens, columns.as_ref(), start, share.len(), at, &mut out);
                        if let Some((states, ahead)) = ahead {
                            let width = factor.kept.unwrap_or(1);
                            for (i, &t) in ahead.iter().enumerate() {
                                let (all, out) = (states.row::<f32>(i), &mut out.row::<f32>(t as usize)[at..]);
                                for (out, i) in out.iter_mut().zip(share.clone()) {
                                    *out = all[ids[i / width] as usize * width + i % width];
                                }
                            }
                        }
                    } else {
                        let both = [&ready[number], &ready[if self.gated { 1 } else { number }]];
                        self.few(row, both, n, share.len(), at, &mut out);
                    }
                }
                first += n_out;
                if self.gated {
                    break;
                }
            }
        }
    }
}

impl Product {
    /// `n_rows` results for `n` tokens, a few, `at` elements into the part.
    fn few<'r>(
        &self,
        row: impl Fn(usize, usize) -> Row<'r>,
        tokens: [&Few; 2],
        n: usize,
        n_rows: usize,
        at: usize,
        out: &mut Part,
    ) {
        let isa = Isa::best();
        let mut results = [vec![0.0f32; n * n_rows], vec![0.0f32; if self.gated { n * n_rows } else { 0 }]];
        for (which, to) in results.iter_mut().enumerate().take(1 + usize::from(self.gated)) {
            isa.multiply_few(
                tokens[which],
                |i| row(which, i),
                n_rows,
                |i, x| {
                    x.iter().enumerate().for_each(|(t, x)| to[t * n_rows + i] = *x);
                },
            );
        }
        for (t, x) in results[0].chunks_exact(n_rows).enumerate() {
            let out = &mut out.row::<f32>(t)[at..at + n_rows];
            match self.gated {
                true => isa.swiglu(x, &results[1][t * n_rows..][..n_rows], out),
                false => out.copy_from_slice(x),
            }
        }
    }

    /// `n_rows` results for many tokens, from row `first` of the factor of this number on, `at` elements into the part.
    #[allow(clippy::too_many_arguments, reason = "all of one product")]
    fn many<'r>(
        &self,
        number: usize,
        row: impl Fn(usize, usize) -> Row<'r>,
        acts: Acts,
        tokens: &[usize],
        columns: Option<&Columns>,
        first: usize,
        n_rows: usize,
        at: usize,
        out: &mut Part,
    ) {
        thread_local! {
            static PANELS: RefCell<[Vec<u8>; 2]> = RefCell::default();
        }
        let isa = Isa::best();
        let (rows, n_bytes) = (isa.panel_rows(), isa.panel_bytes(acts.k()));
        let n_in = self.factors[number].matrix.n_in();
        let n_panels = 1 + usize::from(self.gated);
        PANELS.with_borrow_mut(|scratch| {
            scratch.iter_mut().take(n_panels).for_each(|p| p.resize(n_bytes, 0));
            for start in (0..n_rows).step_by(rows) {
                let n = rows.min(n_rows - start);
                // A panel that is there already, if the rows are its.
                let resident = |which: usize| {
                    let panels = self.factors[number + which].resident.as_ref().filter(|_| columns.is_none())?;
                    let at = panels.range.start + (first + start) / rows * n_bytes;
                    (first + start).is_multiple_of(rows).then(|| &panels.pages[at..at + n_bytes])
                };
                let began = Instant::now();
                for (which, panel) in scratch.iter_mut().enumerate().take(n_panels) {
                    if resident(which).is_none() {
                        isa.pack(|i| row(which, start + i), n, n_in, columns, panel);
                    }
                }
                if let Some(clock) = &self.clock {
                    clock.pack.fetch_add(began.elapsed().as_nanos() as i64, Ordering::Relaxed);
                }
                let panels: [&[u8]; 2] = std::array::from_fn(|i| match i < n_panels {
                    true => resident(i).unwrap_or(&scratch[i]),
                    false => &[],
                });
                isa.multiply(&panels[..n_panels], n, acts, tokens, &mut Tokens { part: out, at: at + start });
            }
        });
    }
}

/// Packs a matrix: as many panels, one after the other, as its rows need.
pub fn pack(matrix: &Matrix, out: &mut [u8]) {
    let isa = Isa::best();
    let ty = matrix.ty();
    let other = move |bytes: &[u8], out: &mut [f32]| dequantize_row(ty, bytes, out);
    let row = |i: usize| Row { bytes: matrix.row(i), format: format(ty).unwrap_or(Format::Other(&other)) };
    for (i, panel) in out.chunks_exact_mut(isa.panel_bytes(matrix.n_in())).enumerate() {
        let first = i * isa.panel_rows();
        let n = isa.panel_rows().min(matrix.n_out() - first);
        isa.pack(|i| row(first + i), n, matrix.n_in(), None, panel);
    }
}

/// Bytes of a matrix in panels.
pub fn packed_bytes(matrix: &Matrix) -> usize {
    let isa = Isa::best();
    matrix.n_out().div_ceil(isa.panel_rows()) * isa.panel_bytes(matrix.n_in())
}

/// The activations of a few tokens, of the sources of [`Quantize`].
fn few(sources: &[Source], eps: f32) -> Vec<u8> {
    let [k, n, ..] = sources[0].ne();
    let mut acts = vec![0u8; n * token_bytes(k)];
    for (i, acts) in acts.chunks_exact_mut(token_bytes(k)).enumerate() {
        quantize(sources, i, eps, acts);
    }
    acts
}

/// The kernels' name of a type that they read themselves.
fn format(ty: Type) -> Option<Format<'static>> {
    match ty {
        Type::Q4_0 => Some(Format::Q4_0),
        Type::Q4_1 => Some(Format::Q4_1),
        Type::Q4_K => Some(Format::Q4K),
        Type::Q8_0 => Some(Format::Q8_0),
        _ => None,
    }
}

/// The columns of kept units of a matrix, made for many products with few tokens.
#[derive(Debug, Clone)]
pub struct MadeColumns {
    /// How they are laid out
    pub layout: Arc<ColumnLayout>,
    /// Where they are
    pub pages: Arc<Pages>,
    /// Where in these
    pub range: Range<usize>,
}

/// Kept units' states F32 `[n_kept * width, n_tokens]` -> F32 `[n_out, n_tokens]`: products with the columns of these that were made
/// in advance.
#[derive(Debug)]
pub struct ColumnProduct {
    /// The columns
    pub columns: MadeColumns,
}

impl Op for ColumnProduct {
    fn division(&self, ne: [usize; 4]) -> Division {
        let layout = &self.columns.layout;
        let share = share(layout.row_bytes(), ne[0]);
        Division { rows: ne[1], columns: share.next_multiple_of(layout.tile_rows()) }
    }

    fn compute(&self, sources: &[Source], parts: &mut Parts) {
        let isa = Isa::best();
        let MadeColumns { layout, pages, range } = &self.columns;
        let n = sources[0].ne()[1];
        let acts: Vec<_> = (0..n).map(|t| isa.column_acts(layout, sources[0].row::<f32>(t))).collect();
        while let Some(mut out) = parts.next() {
            let first = out.columns().start;
            for (t, acts) in acts.iter().enumerate() {
                isa.multiply_columns(layout, &pages[range.clone()], acts, first, out.row::<f32>(t));
            }
        }
    }
}

/// How the columns of kept units of a matrix are laid out.
pub fn column_layout(matrix: &Matrix, kept: &[i32], width: usize) -> ColumnLayout {
    let columns = Columns::new(kept, width, matrix.n_in());
    // The layout does not ask for values.
    let format = format(matrix.ty()).unwrap_or(Format::Other(&|_, _| ()));
    Isa::best().column_layout(format, matrix.n_out(), &columns)
}

/// Writes the columns of a matrix.
pub fn reduce_columns(matrix: &Matrix, layout: &ColumnLayout, out: &mut [u8]) {
    let ty = matrix.ty();
    let other = move |bytes: &[u8], out: &mut [f32]| dequantize_row(ty, bytes, out);
    let row = |i: usize| Row { bytes: matrix.row(i), format: format(ty).unwrap_or(Format::Other(&other)) };
    Isa::best().reduce_columns(layout, row, matrix.n_in(), out);
}

/// Tokens whose attention is computed together: enough that each key is read for many queries, few enough for all threads.
const ATTEND_ROWS: usize = 96;

/// Queries F32 `[d, n_head, n_tokens]`, keys and values `[d, n_head_kv, n_kv, n_seq]` of a cache, positions I32 `[n_tokens]` (and the
/// kept heads I32 `[n_head]`) -> F32 `[d * n_head, n_tokens]`: attention of each token to the cells up to its position.
#[derive(Debug)]
pub struct Attend {
    /// Factor on scores
    pub scale: f32,
    /// Query heads to a key and value head
    pub n_rep: usize,
    /// Width of a head
    pub d: usize,
}

impl Op for Attend {
    fn division(&self, ne: [usize; 4]) -> Division {
        match ne[1] <= FEW {
            // Heads that read the same keys together.
            true => Division { rows: 1, columns: self.d * self.n_rep },
            false => Division { rows: (ATTEND_ROWS / self.n_rep).max(1), columns: ne[0] },
        }
    }

    fn compute(&self, sources: &[Source], parts: &mut Parts) {
        let [q, k, v, pos] = [0, 1, 2, 3].map(|i| sources[i]);
        let [d, _, n_tokens, _] = q.ne();
        let n_each = n_tokens / k.ne()[3];
        let pos = pos.row::<i32>(0);
        let ids: Option<&[i32]> = sources.get(4).map(|s| s.row(0));
        let kv_head = |head: usize| ids.map_or(head, |ids| ids[head] as usize) / self.n_rep;
        while let Some(mut out) = parts.next() {
            let (tokens, columns) = (out.rows(), out.columns());
            let mut first = tokens.start;
            while first < tokens.end {
                // Tokens of one sequence, heads that read the same keys.
                let seq = first / n_each;
                let last = tokens.end.min((seq + 1) * n_each);
                for heads in
                    (columns.start / d..columns.end / d).collect::<Vec<_>>().chunk_by(|&a, &b| kv_head(a) == kv_head(b))
                {
                    let head = kv_head(heads[0]);
                    let rows: Vec<(usize, usize)> =
                        (first..last).flat_map(|t| heads.iter().map(move |&h| (t, h))).collect();
                    let query =
                        |&(t, h): &(usize, usize)| Query { q: q.elements([h, t, 0]), visible: pos[t] as usize + 1 };
                    let queries: Vec<Query> = rows.iter().map(query).collect();
                    let (kt, vt) = (k.ty(), v.ty());
                    let k_values = move |b: &[u8], o: &mut [f32]| dequantize_row(kt, b, o);
                    let v_values = move |b: &[u8], o: &mut [f32]| dequantize_row(vt, b, o);
                    let ((k, k_stride, k_len), (v, v_stride, v_len)) = (k.along(head, seq), v.along(head, seq));
                    let values = (kt != Type::F16).then_some(&k_values as &dyn Fn(&[u8], &mut [f32]));
                    let keys = Cells { bytes: k, stride: k_stride, len: k_len, values };
                    let values = (vt != Type::F16).then_some(&v_values as &dyn Fn(&[u8], &mut [f32]));
                    let values = Cells { bytes: v, stride: v_stride, len: v_len, values };
                    Isa::best().attend(&queries, &keys, &values, self.scale, &mut |i, x| {
                        let (t, h) = rows[i];
                        out.row::<f32>(t)[h * d - columns.start..][..d].copy_from_slice(x);
                    });
                }
                first = last;
            }
        }
    }
}
