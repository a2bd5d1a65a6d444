//! Products of many tokens, by panels of weights.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Instant;

use ggml::{Division, Op, Part, Parts, Source};
use kernels::{Acts, Columns, Isa, Out, Packed, aligned};

use super::clock::Clock;
use super::operand::{Combine, Operand, Operands, share_scales};

/// Activations I32 `[words(k), n_tokens]` (see [`super::Quantize`]; they share scales where [`share_scales`] says so) -> F32
/// `[n_out, n_tokens]`: their products with all operands.
///
/// The first source are the activations; the numbers of the others are in the fields.
#[derive(Debug)]
pub struct PanelProduct {
    /// The weights
    pub operands: Vec<Operand>,
    /// What becomes of the products
    pub combine: Combine,
    /// Columns of a unit, if the activations are those of kept units: then only their columns are multiplied
    pub unit_columns: Option<usize>,
    /// Source: the kept units, I32 `[n_kept]`
    pub ids: Option<usize>,
    /// What some tokens have already
    pub ahead: Option<Ahead>,
    /// Is told of packing
    pub clock: Option<Arc<Clock>>,
}

/// Products that some tokens have already: of all units, with one operand or a gated pair.
#[derive(Debug, Clone, Copy)]
pub struct Ahead {
    /// Source: F32 `[n_out of all units, n_ahead]`
    pub products: usize,
    /// Source: the numbers of these tokens, I32 `[n_ahead]`
    pub tokens: usize,
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

/// What all parts of a product share.
struct Shared<'a> {
    operands: Operands<'a>,
    ids: &'a [i32],
    columns: Option<Columns>,
    acts: Acts<'a>,
    /// The tokens that are multiplied
    tokens: Vec<usize>,
}

impl Op for PanelProduct {
    fn division(&self, ne: [usize; 4]) -> Division {
        // Of a small matrix as many parts are made as threads can share.
        let panel_rows = Isa::best().panel_rows();
        let most = (ne[0] / MIN_PARTS).next_multiple_of(panel_rows).max(panel_rows);
        Division { rows: ne[1], columns: self.gemm_rows().min(most) }
    }

    fn compute(&self, sources: &[Source], parts: &mut Parts) {
        let ids: &[i32] = self.ids.map_or(&[], |i| sources[i].row(0));
        let n_in = self.operands[0].matrix.n_in();
        let columns = self.unit_columns.map(|width| Columns::new(ids, width, n_in));
        let k = columns.as_ref().map_or(n_in, Columns::len);
        let ahead = self.ahead.map(|a| (&sources[a.products], sources[a.tokens].row::<i32>(0)));
        let mut is_ahead = vec![false; sources[0].ne()[1]];
        ahead.iter().flat_map(|a| a.1).for_each(|&t| is_ahead[t as usize] = true);
        // Of a tile in which one token has no products yet all are multiplied: it can be read where it is.
        let tile = Isa::best().tile_tokens();
        let is_missing = |t: &usize| is_ahead[t / tile * tile..].iter().take(tile).any(|is_ahead| !is_ahead);
        let tokens = (0..is_ahead.len()).filter(is_missing).collect();
        let acts = Acts::new(sources[0].all_bytes(), k, tile, share_scales(&self.operands));
        let shared = Shared { operands: Operands::new(&self.operands), ids, columns, acts, tokens };
        while let Some(mut out) = parts.next() {
            let range = out.columns();
            let mut first = 0;
            for number in (0..self.operands.len()).step_by(self.combine.n_together()) {
                let operand = &self.operands[number];
                let n_out = operand.n_out(ids.len());
                // The part's share of this operand.
                let share = range.start.max(first)..range.end.min(first + n_out);
                if !share.is_empty() {
                    let at = share.start - range.start;
                    let rows = share.start - first..share.end - first;
                    self.multiply(&shared, number, rows.clone(), at, &mut out);
                    if let Some((products, tokens)) = ahead {
                        for (i, &t) in tokens.iter().enumerate() {
                            let (all, out) = (products.row::<f32>(i), &mut out.row::<f32>(t as usize)[at..]);
                            for (out, row) in out.iter_mut().zip(rows.clone()) {
                                *out = all[operand.row_number(row, ids)];
                            }
                        }
                    }
                }
                first += n_out;
            }
        }
    }
}

/// Parts that a product has at least, if it has as many panels.
const MIN_PARTS: usize = 24;

impl PanelProduct {
    /// Rows of the product that are made at once.
    fn gemm_rows(&self) -> usize {
        Isa::best().gemm_rows(self.operands[0].matrix.n_in(), self.combine.n_together())
    }

    /// Products with `rows` of the operand of this number (of the gated pair that it begins), written `at` elements into the part.
    fn multiply(&self, shared: &Shared, number: usize, rows: std::ops::Range<usize>, at: usize, out: &mut Part) {
        thread_local! {
            static PANELS: RefCell<[Vec<u8>; 2]> = RefCell::default();
        }
        let isa = Isa::best();
        let (at_once, n_bytes) = (self.gemm_rows(), isa.panel_bytes(shared.acts.k()));
        let n_in = self.operands[number].matrix.n_in();
        let columns = shared.columns.as_ref();
        PANELS.with_borrow_mut(|scratch| {
            for start in rows.clone().step_by(at_once) {
                let n = at_once.min(rows.end - start);
                let began = Instant::now();
                let mut panels: [&[u8]; 2] = Default::default();
                for (which, room) in scratch.iter_mut().enumerate().take(self.combine.n_together()) {
                    let packed = self.operands[number + which].packed.as_ref().filter(|_| columns.is_none());
                    panels[which] = match packed.and_then(|packed| packed.panels(start, n, n_bytes)) {
                        Some(panels) => panels,
                        None => {
                            let rows = shared.operands.rows(number + which);
                            let row = |i: usize| rows.row(start + i, shared.ids);
                            let panels = aligned(room, n.div_ceil(isa.panel_rows()) * n_bytes);
                            isa.pack(&row, n, n_in, columns, panels);
                            panels
                        }
                    };
                }
                if let Some(clock) = &self.clock {
                    clock.add_pack(began.elapsed());
                }
                let panels = |which: usize| Packed {
                    bytes: panels[which],
                    format: shared.operands.rows(number + which).format(),
                    is_kept: columns.is_some(),
                };
                let (acts, tokens) = (shared.acts, &shared.tokens[..]);
                let mut out = Tokens { part: out, at: at + start - rows.start };
                match self.combine {
                    Combine::Stack => isa.gemm(panels(0), n, acts, tokens, &mut out),
                    Combine::Gated(act) => isa.gemm_gated(act, [panels(0), panels(1)], n, acts, tokens, &mut out),
                }
            }
        });
    }
}
