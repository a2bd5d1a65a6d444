//! CPU kernels for the weights of a language model, chosen at run time by what the processor has.
//!
//! Three kinds of matrix product take rows of weights as a file has them and activations as 8-bit codes ([`Acts`]): gemm, for many
//! tokens, multiplies rows that were packed into a panel of 8-bit codes; gemv, for up to [`MAX_GEMV_TOKENS`] tokens, multiplies rows where
//! they are; and reduced columns are a copy of some columns, for single tokens. Beside them there are attention, and the operations that
//! make activations. Everything is a method of [`Isa`], an instruction set that the processor has.
//!
//! The files are best read in this order:
//!
//! ```text
//! isa/         what kernels ask of a processor, one file for each instruction set
//! math.rs      functions of vectors
//! acts.rs      activations
//! formats/     weight types, one file for each
//! panel.rs     rows -> panels             gemm.rs      panels times many tokens
//! gemv.rs      rows times few tokens      columns.rs   reduced columns, and their products
//! attend.rs    attention                  peak.rs      the processor's speed limit
//! ```
//!
//! Shapes are in ggml's order, and slices of two dimensions are written `[rows][columns]`: the last index runs fastest.

mod acts;
mod attend;
mod columns;
mod formats;
mod gemm;
mod gemv;
mod isa;
mod math;
mod panel;
mod peak;

use std::cell::RefCell;

pub use acts::{Acts, GROUP, token_bytes};
pub use attend::{Cells, Elements, Query, Scores};
pub use columns::{ColumnActs, ColumnLayout, Columns};
pub use formats::{Decode, Format, Row};
pub use gemm::{Out, Packed};
pub use gemv::{GemvActs, MAX_GEMV_TOKENS};
pub use isa::{Feature, Isa, features};
pub use math::Activation;

/// Gives rows by their numbers. It is no type parameter, so that kernels are compiled here, once, and not for each caller.
pub type RowFn<'a, 'r> = &'a dyn Fn(usize) -> Row<'r>;

thread_local! {
    static PACK_SCRATCH: RefCell<panel::Scratch> = RefCell::default();
    static GEMM_TILE: RefCell<Vec<u8>> = RefCell::default();
    static ATTEND_BUFFERS: RefCell<attend::Buffers> = RefCell::default();
}

/// `n` elements of `room`, bytes or floats, which grows if it must. They begin at a line of the processor's cache: a vector that lies across two
/// lines may take twice as long to read.
pub fn aligned<T: Clone + Default>(room: &mut Vec<T>, n: usize) -> &mut [T] {
    let line = 64 / size_of::<T>();
    room.resize(room.len().max(n + line - 1), T::default());
    // `align_offset` may answer that it does not know, with a huge number: then it is only slower.
    let at = room.as_ptr().align_offset(64).min(line - 1);
    &mut room[at..at + n]
}

impl Isa {
    /// Operations on bytes a second that one thread does at best; a multiplication and an addition are two. It is measured, for about a
    /// tenth of a second, by products of what is in registers: those by which [`Isa::gemm`] multiplies rows of this format, or kept columns of
    /// them, without scales, minima and whatever else is read and added.
    pub fn peak(self, format: Format, is_kept: bool) -> f64 {
        self.run(peak::Peak { format, is_kept })
    }

    /// Tokens that [`Isa::gemm`] multiplies at once: activations for it lie in tiles of so many.
    pub fn tile_tokens(self) -> usize {
        self.run(acts::TileTokens)
    }

    /// Writes a tile of activations ([`Acts`]): of the floats `[k]` of each token; [`token_bytes`] bytes for each. They share scales if they are
    /// multiplied with weights of a format that does, see [`Format::shares_scales`].
    ///
    /// # Panics
    /// If `tile` has another size.
    pub fn quantize(self, tokens: &[&[f32]], shares_scales: bool, tile: &mut [u8]) {
        self.run(acts::Quantize { tokens, norm: None, shares_scales, tile });
    }

    /// Writes a tile of activations of tokens' RMS norms: of `x * gain / sqrt(mean(x^2) + eps)`, with `x` and `gain` `[k]`.
    ///
    /// # Panics
    /// If `gain` is shorter, or `tile` has another size.
    pub fn rms_norm_quantize(self, tokens: &[&[f32]], gain: &[f32], eps: f32, shares_scales: bool, tile: &mut [u8]) {
        self.run(acts::Quantize { tokens, norm: Some((gain, eps)), shares_scales, tile });
    }

    /// `act(gate) * up`, element by element; all three slices have the same length.
    pub fn gated(self, act: Activation, gate: &[f32], up: &[f32], out: &mut [f32]) {
        self.run(acts::Gated { act, gate, up, out });
    }

    /// Rows of a panel.
    pub fn panel_rows(self) -> usize {
        self.run(panel::PanelRows)
    }

    /// Bytes of a panel whose rows have `k` inputs.
    pub fn panel_bytes(self, k: usize) -> usize {
        self.run(panel::PanelBytes { k })
    }

    /// Rows that are best packed and multiplied at once, `k` inputs of each of `n_matrices`: several panels share what is read of the tokens, and
    /// all of them should fit into the processor's second nearest memory, of half a megabyte or more.
    pub fn gemm_rows(self, k: usize, n_matrices: usize) -> usize {
        (512usize << 10).div_ceil(n_matrices * self.panel_bytes(k)).min(4) * self.panel_rows()
    }

    /// Packs the rows `row(0)..row(n_rows)`, of `n_in` inputs each, into as few panels as hold them, of [`Isa::panel_bytes`] bytes each, one
    /// after the other: all inputs, or those that are kept.
    ///
    /// # Panics
    /// If `panels` has another size.
    pub fn pack<'r>(
        self,
        row: RowFn<'_, 'r>,
        n_rows: usize,
        n_in: usize,
        columns: Option<&Columns>,
        panels: &mut [u8],
    ) {
        PACK_SCRATCH.with_borrow_mut(|scratch| {
            self.run(panel::Pack { row, n_rows, n_in, columns, scratch, panels });
        })
    }

    /// Multiplies `n_rows` rows, packed one after the other into as few panels as hold them, with the activations of `tokens`. A row's product
    /// with token `t` goes to the element of the row's number of `out.token(t)`. Tokens that are whole tiles, in their order, are multiplied fastest.
    ///
    /// # Panics
    /// If panels have another number of inputs than the activations, or there are more or fewer, or a token is beyond them, or the panels' format
    /// shares scales and the activations do not. What panels are said to be of decides how they are read: if it is something else, products are
    /// anything.
    pub fn gemm(self, panels: Packed, n_rows: usize, acts: Acts, tokens: &[usize], out: &mut dyn Out) {
        GEMM_TILE.with_borrow_mut(|gathered| {
            self.run(gemm::Gemm { first: panels, second: None, n_rows, acts, tokens, gathered, out });
        })
    }

    /// Multiplies the rows of panels of `gate` and of `up`, as [`Isa::gemm`] does, and writes `act(gate) * up` of the products.
    ///
    /// # Panics
    /// As [`Isa::gemm`].
    pub fn gemm_gated(
        self,
        act: Activation,
        [gate, up]: [Packed; 2],
        n_rows: usize,
        acts: Acts,
        tokens: &[usize],
        out: &mut dyn Out,
    ) {
        GEMM_TILE.with_borrow_mut(|gathered| {
            self.run(gemm::Gemm { first: gate, second: Some((up, act)), n_rows, acts, tokens, gathered, out });
        })
    }

    /// Makes the activations of up to [`MAX_GEMV_TOKENS`] tokens ready for [`Isa::gemv`] with rows of a format.
    ///
    /// # Panics
    /// If there are more tokens, or none, or the format is none of those of [`Format::has_gemv`].
    pub fn gemv_acts(self, acts: Acts, format: Format) -> GemvActs {
        let isa = self.of_short_rows(acts.k(), format);
        isa.run(gemv::MakeGemvActs { isa, acts, format })
    }

    /// Multiplies the rows `row(0)..row(n_rows)`, which have the activations' format, with few tokens, on the vectors that these are arranged for.
    /// Each row is read once, where it is; then `done(i, products)` gets the products of row `i` with all tokens, in their order.
    ///
    /// # Panics
    /// If a row's format is none of those of [`Format::has_gemv`].
    pub fn gemv<'r>(self, acts: &GemvActs, row: RowFn<'_, 'r>, n_rows: usize, done: &mut dyn FnMut(usize, &[f32])) {
        acts.isa.run(gemv::Gemv { acts, row, n_rows, done });
    }

    /// The layout of the kept columns of a matrix of `n_out` rows.
    pub fn column_layout(self, format: Format, n_out: usize, columns: &Columns) -> ColumnLayout {
        self.run(columns::Layout { format, n_out, columns })
    }

    /// Copies the kept columns of a matrix, whose rows `row(0)..row(w.n_out())` have the layout's format and `n_in` inputs each, into
    /// [`ColumnLayout::n_bytes`] bytes.
    ///
    /// # Panics
    /// If `tiles` has another size, or another instruction set made the layout.
    pub fn reduce_columns<'r>(self, w: &ColumnLayout, row: RowFn<'_, 'r>, n_in: usize, tiles: &mut [u8]) {
        self.run(columns::Reduce { w, row, n_in, tiles });
    }

    /// Makes a token's kept inputs ready for [`Isa::gemv_columns`]: `x` has as many floats as columns are kept.
    pub fn column_acts(self, w: &ColumnLayout, x: &[f32]) -> ColumnActs {
        self.run(columns::MakeColumnActs { w, x })
    }

    /// Multiplies the kept columns with a token's kept inputs: writes the products of as many rows as `out` has floats, from row `first`
    /// on. `tiles` is what [`Isa::reduce_columns`] wrote.
    ///
    /// # Panics
    /// If `first` is not a multiple of [`ColumnLayout::tile_rows`], or there are fewer rows, or another instruction set made the layout.
    pub fn gemv_columns(self, w: &ColumnLayout, tiles: &[u8], acts: &ColumnActs, first: usize, out: &mut [f32]) {
        self.run(columns::GemvColumns { w, tiles, acts, first, out });
    }

    /// Attention of queries to the cells of one key and value head: for each query `softmax(scores(q k^T)) v` over the cells of
    /// [`Query::visible`]. `done(i, result, log_sum_exp)` gets the result of query `i`, query by query, and the logarithm of the sum of
    /// `e^score` over these cells (and the sink), by which results of parts of the cells are put together.
    ///
    /// A few queries are computed in another way than many, with other rounding. If they are a part (`is_part`) of many, they are computed
    /// as those: so a query's result is the same bits whichever others come with it.
    ///
    /// # Panics
    /// If there are no queries, or a query sees more cells than there are.
    pub fn attend<'c>(
        self,
        queries: &[Query<'c>],
        keys: &Cells<'c>,
        values: &Cells<'c>,
        scores: Scores,
        is_part: bool,
        done: &mut dyn FnMut(usize, &[f32], f32),
    ) {
        ATTEND_BUFFERS.with_borrow_mut(|buffers| {
            self.run(attend::Attend { queries, keys, values, scores, is_part, done, buffers })
        });
    }
}
