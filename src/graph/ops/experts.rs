//! Experts: which a token is given to, the products with their matrices, and the sum of what they give.

use std::cell::RefCell;
use std::ops::Range;

use ggml::{Division, Op, Parts, Source};
use kernels::{Acts, GemvActs, Isa, MAX_GEMV_TOKENS, Out, Packed, aligned};

use super::gemv::share;
use super::operand::{Combine, Operand, Operands, share_scales};
use crate::weights::has_gemv;

/// Scores of experts F32 `[n_expert, n_tokens]` -> I32 `[n_used, n_tokens]`: those of the largest scores, the largest first; of equal ones
/// the first.
#[derive(Debug)]
pub struct Route;

impl Op for Route {
    fn compute(&self, sources: &[Source], parts: &mut Parts) {
        while let Some(mut out) = parts.next() {
            for t in out.rows() {
                let scores = sources[0].row::<f32>(t);
                let mut experts: Vec<i32> = (0..scores.len() as i32).collect();
                experts.sort_by(|&a, &b| scores[b as usize].total_cmp(&scores[a as usize]).then(a.cmp(&b)));
                let row = out.row::<i32>(t);
                row.copy_from_slice(&experts[..row.len()]);
            }
        }
    }
}

/// Numbers of all experts F32 `[n_expert, n_tokens]` and the chosen ones I32 `[n_used, n_tokens]` -> those of the chosen ones F32
/// `[n_used, n_tokens]`.
#[derive(Debug)]
pub struct OfChosen {
    /// They are divided by their sum
    pub as_shares: bool,
}

/// What a sum of weights counts as at least, as in llama.cpp: the smallest normal number of 16 bits.
const LEAST_TOTAL: f32 = 6.103_515_6e-5;

impl Op for OfChosen {
    fn compute(&self, sources: &[Source], parts: &mut Parts) {
        while let Some(mut out) = parts.next() {
            for t in out.rows() {
                let (all, chosen) = (sources[0].row::<f32>(t), sources[1].row::<i32>(t));
                let row = out.row::<f32>(t);
                row.iter_mut().zip(chosen).for_each(|(w, &e)| *w = all[e as usize]);
                if self.as_shares {
                    let total = row.iter().map(|&w| f64::from(w)).sum::<f64>() as f32;
                    row.iter_mut().for_each(|w| *w /= total.max(LEAST_TOTAL));
                }
            }
        }
    }
}

/// What the chosen experts give, F32 `[n, n_used * n_tokens]`, and their weights F32 `[n_used, n_tokens]` -> the weighted sum of each token,
/// F32 `[n, n_tokens]`.
#[derive(Debug)]
pub struct Blend;

impl Op for Blend {
    fn compute(&self, sources: &[Source], parts: &mut Parts) {
        while let Some(mut out) = parts.next() {
            for t in out.rows() {
                let weights = sources[1].row::<f32>(t);
                let row = out.row::<f32>(t);
                row.fill(0.0);
                for (slot, w) in weights.iter().enumerate() {
                    let given = sources[0].row::<f32>(t * weights.len() + slot);
                    row.iter_mut().zip(given).for_each(|(sum, x)| *sum += w * x);
                }
            }
        }
    }
}

/// Activations I32 `[words(k), n]` (see [`super::Quantize`]; they share scales where [`share_scales`] says so) and the chosen
/// experts I32 `[n_used, n_tokens]` -> F32 `[n_out, n_used * n_tokens]`: the products of each token with the matrices of its experts. The
/// activations are those of the tokens, or one row for each token and expert. The rows of experts that were not chosen are not read.
#[derive(Debug)]
pub struct ExpertProduct {
    /// One matrix, or a gated pair: the experts' rows one below the other
    pub operands: Vec<Operand>,
    /// What becomes of the products
    pub combine: Combine,
    /// Rows of an expert's matrix
    pub n_out: usize,
    /// The products are of so few tokens that rows are multiplied where they are, token by token
    pub is_direct: bool,
}

/// What an expert multiplies: of each of its tokens the row of the activations, and the row of the result.
struct Given {
    expert: usize,
    acts: Vec<usize>,
    results: Vec<usize>,
    /// Ready for rows of each operand's format, if there are so few tokens that rows are multiplied where they are
    few: Option<Vec<GemvActs>>,
}

/// The rows of the result that an expert's tokens have.
struct Results<'a, 'b> {
    part: &'a mut ggml::Part<'b>,
    /// By the row of the activations
    row_of: &'a [usize],
    at: usize,
}

impl Out for Results<'_, '_> {
    fn token(&mut self, t: usize) -> &mut [f32] {
        &mut self.part.row(self.row_of[t])[self.at..]
    }
}

impl Op for ExpertProduct {
    fn division(&self, ne: [usize; 4]) -> Division {
        let panel_rows = Isa::best().panel_rows();
        match self.is_direct {
            // Of one expert as many rows as a thread reads one after the other.
            true => {
                let share = share(self.operands[0].matrix.row_bytes(), self.n_out);
                Division { rows: 1, columns: share.next_multiple_of(panel_rows) }
            }
            false => Division { rows: ne[1], columns: 4 * panel_rows },
        }
    }

    fn compute(&self, sources: &[Source], parts: &mut Parts) {
        if self.is_direct {
            return self.in_place(sources, parts);
        }
        let isa = Isa::best();
        let k = self.operands[0].matrix.n_in();
        let all = Acts::new(sources[0].all_bytes(), k, isa.tile_tokens(), share_scales(&self.operands));
        let operands = Operands::new(&self.operands);
        let given = self.given(sources, all, &operands);
        let mut row_of = vec![0; all.n_tokens()];
        while let Some(mut out) = parts.next() {
            let columns = out.columns();
            for one in &given {
                let first = one.expert * self.n_out;
                if let Some(few) = &one.few {
                    let products = |which: usize| {
                        let rows = operands.rows(which);
                        let mut all = vec![0.0f32; one.acts.len() * columns.len()];
                        let row = |i: usize| rows.row(first + columns.start + i, &[]);
                        isa.gemv(&few[which], &row, columns.len(), &mut |i, x| {
                            x.iter().enumerate().for_each(|(t, x)| all[t * columns.len() + i] = *x);
                        });
                        all
                    };
                    let mut gate = products(0);
                    if let Combine::Gated(act) = self.combine {
                        let (up, mut gated) = (products(1), vec![0.0f32; gate.len()]);
                        isa.gated(act, &gate, &up, &mut gated);
                        gate = gated;
                    }
                    for (&row, x) in one.results.iter().zip(gate.chunks_exact(columns.len())) {
                        out.row::<f32>(row).copy_from_slice(x);
                    }
                    continue;
                }
                one.acts.iter().zip(&one.results).for_each(|(&a, &r)| row_of[a] = r);
                self.by_panels(all, &operands, first, columns.clone(), &one.acts, &row_of, &mut out);
            }
        }
    }
}

impl ExpertProduct {
    /// Products of a few tokens, row by row of the result.
    fn in_place(&self, sources: &[Source], parts: &mut Parts) {
        let isa = Isa::best();
        let k = self.operands[0].matrix.n_in();
        let all = Acts::new(sources[0].all_bytes(), k, isa.tile_tokens(), share_scales(&self.operands));
        let operands = Operands::new(&self.operands);
        let [n_used, n_tokens, ..] = sources[1].ne();
        let per_token = sources[0].ne()[1] / n_tokens;
        // Each row of the activations for each operand's format, once for all parts of this thread.
        let ready = |a: usize| {
            let own = all.of(&[a]);
            let ready = |i: usize| isa.gemv_acts(Acts::new(&own, k, 1, all.shares_scales()), operands.rows(i).format());
            (0..self.operands.len()).map(ready).collect()
        };
        let acts: Vec<Vec<GemvActs>> = (0..n_tokens * per_token).map(ready).collect();
        let mut up = Vec::new();
        while let Some(mut out) = parts.next() {
            let columns = out.columns();
            for row in out.rows() {
                let (t, slot) = (row / n_used, row % n_used);
                let expert = sources[1].row::<i32>(t)[slot] as usize;
                let acts = &acts[t * per_token + if per_token > 1 { slot } else { 0 }];
                let first = expert * self.n_out + columns.start;
                let multiply = |which: usize, to: &mut [f32]| {
                    let rows = operands.rows(which);
                    isa.gemv(&acts[which], &|i| rows.row(first + i, &[]), columns.len(), &mut |i, x| to[i] = x[0]);
                };
                let to = out.row::<f32>(row);
                match self.combine {
                    Combine::Stack => multiply(0, to),
                    Combine::Gated(act) => {
                        let mut gate = vec![0.0f32; columns.len()];
                        up.resize(columns.len(), 0.0);
                        multiply(0, &mut gate);
                        multiply(1, &mut up);
                        isa.gated(act, &gate, &up, to);
                    }
                }
            }
        }
    }

    /// What each chosen expert multiplies.
    fn given(&self, sources: &[Source], acts: Acts, operands: &Operands) -> Vec<Given> {
        let [n_used, n_tokens, ..] = sources[1].ne();
        // Rows of the activations for a token: one, or one for each of its experts.
        let per_token = sources[0].ne()[1] / n_tokens;
        let n_expert = self.operands[0].matrix.n_out() / self.n_out;
        let mut all: Vec<Given> = Vec::new();
        let mut number = vec![usize::MAX; n_expert];
        for t in 0..n_tokens {
            for (slot, &expert) in sources[1].row::<i32>(t).iter().enumerate() {
                let expert = expert as usize;
                if number[expert] == usize::MAX {
                    number[expert] = all.len();
                    all.push(Given { expert, acts: Vec::new(), results: Vec::new(), few: None });
                }
                let one = &mut all[number[expert]];
                one.acts.push(t * per_token + if per_token > 1 { slot } else { 0 });
                one.results.push(t * n_used + slot);
            }
        }
        let is_direct = self.operands.iter().all(|o| has_gemv(o.matrix.ty()));
        for one in all.iter_mut().filter(|one| is_direct && one.acts.len() <= MAX_GEMV_TOKENS) {
            let own = acts.of(&one.acts);
            let ready = |i: usize| {
                Isa::best().gemv_acts(Acts::new(&own, acts.k(), 1, acts.shares_scales()), operands.rows(i).format())
            };
            one.few = Some((0..self.operands.len()).map(ready).collect());
        }
        all
    }

    /// The products of an expert, whose rows begin with number `first`, with the activations `acts`, for some columns of the result.
    #[allow(clippy::too_many_arguments, reason = "all of one product")]
    fn by_panels(
        &self,
        all: Acts,
        operands: &Operands,
        first: usize,
        columns: Range<usize>,
        acts: &[usize],
        row_of: &[usize],
        out: &mut ggml::Part,
    ) {
        thread_local! {
            static PANELS: RefCell<[Vec<u8>; 2]> = RefCell::default();
        }
        let isa = Isa::best();
        let (at_once, n_bytes, k) =
            (isa.gemm_rows(all.k(), self.combine.n_together()), isa.panel_bytes(all.k()), all.k());
        PANELS.with_borrow_mut(|scratch| {
            for start in columns.clone().step_by(at_once) {
                let n = at_once.min(columns.end - start);
                let mut panels: [&[u8]; 2] = Default::default();
                for (which, room) in scratch.iter_mut().enumerate().take(self.combine.n_together()) {
                    let packed = aligned(room, n.div_ceil(isa.panel_rows()) * n_bytes);
                    let rows = operands.rows(which);
                    isa.pack(&|i| rows.row(first + start + i, &[]), n, k, None, packed);
                    panels[which] = packed;
                }
                let panels = |which: usize| Packed {
                    bytes: panels[which],
                    format: operands.rows(which).format(),
                    is_kept: false,
                };
                let mut out = Results { part: out, row_of, at: start - columns.start };
                match self.combine {
                    Combine::Stack => isa.gemm(panels(0), n, all, acts, &mut out),
                    Combine::Gated(act) => isa.gemm_gated(act, [panels(0), panels(1)], n, all, acts, &mut out),
                }
            }
        });
    }
}
