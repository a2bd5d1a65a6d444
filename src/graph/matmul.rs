//! The one way to a weight: every product of states with a matrix is made here.
//!
//! Which kernel multiplies is a fact of the weight ([`crate::weights::Kernel`]) and of the number of tokens; which part of the matrix
//! counts is what the caller asks for ([`Part`]).

use ggml::{Tensor, Type};
use kernels::MAX_GEMV_TOKENS;

use super::builder::GraphBuilder;
use super::ops::{self, ColumnProduct, Combine, MAX_ROW_TOKENS, Operand, PanelProduct, RowProduct};
use super::states::States;
use crate::prune::{
    self, Block, GatherColumns, GatherRows, Pass, Reduced, ReducedLinear, ReducedMatrix, Role, column_type,
};
use crate::weights::{Activation, Kernel, Linear, Norm, Weight, has_gemv};

/// Which part of a matrix is multiplied.
#[derive(Debug, Clone, Copy)]
pub enum Part<'k, 'g> {
    /// All of it
    All,
    /// The rows of kept units: of the product only theirs are made
    Rows(&'k Kept<'k, 'g>, Role),
    /// The columns of kept units: the states are of these units only
    Columns(&'k Kept<'k, 'g>, Role),
}

/// The units of a block that are kept.
#[derive(Debug, Clone, Copy)]
pub struct Kept<'a, 'g> {
    /// I32 `[n]`: their numbers
    pub ids: Tensor<'g>,
    /// How many they are
    pub n: usize,
    /// Rows or columns of a unit
    pub width: usize,
    /// The block that they are of
    pub block: Block,
    /// Their weights, if these were reduced in advance
    pub reduced: Option<&'a Reduced>,
    /// What some rows of the batch have of the block's first product already
    pub ahead: Option<Ahead<'g>>,
}

/// A product that some rows of the batch ran ahead through.
#[derive(Debug, Clone, Copy)]
pub struct Ahead<'g> {
    /// F32 `[n_out, n_rows]`, of all units
    pub product: Tensor<'g>,
    /// I32 `[n_rows]`: the rows
    pub rows: Tensor<'g>,
}

impl<'a> Kept<'a, '_> {
    /// A matrix, if it was reduced in advance.
    fn reduced(&self, role: Role) -> Option<&'a ReducedLinear> {
        self.reduced.and_then(|reduced| reduced.linear(self.block, role))
    }
}

impl<'k, 'g> Part<'k, 'g> {
    /// Units of which rows are multiplied.
    fn rows(self) -> Option<(&'k Kept<'k, 'g>, Role)> {
        match self {
            Part::Rows(kept, role) => Some((kept, role)),
            _ => None,
        }
    }
}

impl<'g> GraphBuilder<'_, 'g> {
    /// `[n_out, n]`: the part of a matrix that is asked for times the states, and its bias.
    pub(super) fn matmul(&mut self, states: &mut States<'_, 'g>, linear: &Linear, part: Part<'_, 'g>) -> Tensor<'g> {
        match part {
            Part::Columns(kept, role) => self.matmul_columns(states, linear, kept, role),
            part => {
                let [product] = self.matmul_stacked(states, [(linear, part)]);
                product
            }
        }
    }

    /// All of a matrix without a bias.
    pub(super) fn matmul_weight(&mut self, states: &mut States<'_, 'g>, weight: &Weight) -> Tensor<'g> {
        match weight.kernel.is_own(states.n()) {
            true => {
                let operand = Operand::all(weight.rows.clone(), weight.packed.clone());
                self.product(states, vec![operand], Combine::Stack, None)
            }
            false => self.all_rows_by_ggml(states, weight),
        }
    }

    /// The products of the same states with all or some rows of several matrices. Those that our kernels multiply are one node.
    pub(super) fn matmul_stacked<const N: usize>(
        &mut self,
        states: &mut States<'_, 'g>,
        linears: [(&Linear, Part<'_, 'g>); N],
    ) -> [Tensor<'g>; N] {
        assert!(
            !linears.iter().any(|l| matches!(l.1, Part::Columns(..))),
            "a product with columns is not stacked with others"
        );
        let n = states.n();
        let own: Vec<usize> = (0..N).filter(|&i| linears[i].0.weight.kernel.is_own(n)).collect();
        let operands: Vec<Operand> = own.iter().map(|&i| self.operand(linears[i].0, linears[i].1)).collect();
        let kept = linears.iter().find_map(|(_, part)| part.rows()).map(|(kept, _)| kept);
        let sizes: Vec<usize> = operands.iter().map(|o| o.n_out(kept.map_or(0, |k| k.n))).collect();
        let all = (!own.is_empty()).then(|| self.product(states, operands, Combine::Stack, kept));
        std::array::from_fn(|i| {
            let (linear, part) = linears[i];
            let (product, bias) = match (all, own.iter().position(|&j| j == i)) {
                (Some(all), Some(number)) => {
                    let rows = sizes[..number].iter().sum::<usize>()..sizes[..=number].iter().sum();
                    (self.rows_of_product(all, rows), self.rows_of_bias(linear, part))
                }
                _ => self.matmul_rows_by_ggml(states, linear, part),
            };
            self.biased(product, bias)
        })
    }

    /// `act(gate) * up` of all or of kept channels, `[n_ff, n]`.
    pub(super) fn matmul_gated(
        &mut self,
        states: &mut States<'_, 'g>,
        [gate, up]: [&Linear; 2],
        act: Activation,
        kept: Option<&Kept<'_, 'g>>,
    ) -> Tensor<'g> {
        let part = |role, kept| Option::map_or(kept, Part::All, |kept| Part::Rows(kept, role));
        let n = states.n();
        if [gate, up].iter().all(|l| l.weight.kernel.is_own(n) && l.bias.is_none()) {
            let operands = vec![self.operand(gate, part(Role::Gate, kept)), self.operand(up, part(Role::Up, kept))];
            return self.product(states, operands, Combine::Gated(act), kept);
        }
        // What ran ahead is the gated product, not the two that it is made of.
        let kept = kept.map(|kept| Kept { ahead: None, ..*kept });
        let kept = kept.as_ref();
        let linears = [(gate, part(Role::Gate, kept)), (up, part(Role::Up, kept))];
        let [gate, up] = self.matmul_stacked(states, linears);
        match act {
            Activation::Silu => self.g.swiglu(gate, up),
            Activation::Gelu => self.g.geglu(gate, up),
        }
    }

    /// What our kernels multiply of a matrix.
    fn operand(&self, linear: &Linear, part: Part<'_, 'g>) -> Operand {
        let Weight { rows, packed, .. } = &linear.weight;
        let Some((kept, role)) = part.rows() else { return Operand::all(rows.clone(), packed.clone()) };
        match kept.reduced(role).map(|r| &r.matrix) {
            Some(ReducedMatrix::OwnRows(rows)) => Operand::all(rows.clone(), None),
            _ => Operand::units(rows.clone(), kept.width),
        }
    }

    /// `[n_out, n]`: our product of the states with these operands, of all rows or of those of kept units.
    fn product(
        &mut self,
        states: &mut States<'_, 'g>,
        operands: Vec<Operand>,
        combine: Combine,
        kept: Option<&Kept<'_, 'g>>,
    ) -> Tensor<'g> {
        let n = states.n();
        let is_direct = operands.iter().all(|o| has_gemv(o.matrix.ty()));
        // Kept units need not be named where their rows were reduced in advance.
        let kept = kept.filter(|_| operands.iter().any(|o| o.unit_rows.is_some()));
        let n_kept = kept.map_or(0, |k| k.n);
        let n_out = (operands.iter().step_by(combine.n_together())).map(|o| o.n_out(n_kept)).sum();
        if n > MAX_ROW_TOKENS || !is_direct {
            return self.panel_product(states, operands, combine, kept, None, n_out);
        }
        // The kernel does one kind of norm itself.
        let x = match states.norm {
            Some(Norm::Layer { .. }) => self.floats(states),
            None | Some(Norm::Rms { .. }) => states.x,
        };
        let mut sources = vec![x];
        let mut push = |t| {
            sources.push(t);
            sources.len() - 1
        };
        let (gain, eps) = match states.norm {
            None | Some(Norm::Layer { .. }) => (None, 0.0),
            Some(Norm::Rms { gain, eps }) => (Some(push(self.vector(gain))), *eps),
        };
        let ids = kept.map(|k| push(k.ids));
        self.g.custom(Type::F32, [n_out, n, 1, 1], &sources, RowProduct { operands, combine, gain, eps, ids })
    }

    /// [`GraphBuilder::product`] by panels; or of states of kept units, with their columns of `unit_columns` each.
    fn panel_product(
        &mut self,
        states: &mut States<'_, 'g>,
        operands: Vec<Operand>,
        combine: Combine,
        kept: Option<&Kept<'_, 'g>>,
        unit_columns: Option<usize>,
        n_out: usize,
    ) -> Tensor<'g> {
        let mut sources = vec![self.codes(states, ops::share_scales(&operands))];
        let mut push = |t| {
            sources.push(t);
            sources.len() - 1
        };
        let ids = kept.map(|k| push(k.ids));
        // Few rows ran ahead through other kernels, which round otherwise. They are multiplied again: a replay, in which no rows run ahead, must
        // compute the same bits.
        let is_alike = |ahead: &Ahead| ahead.rows.ne()[0] > MAX_ROW_TOKENS;
        let ahead = kept.filter(|_| unit_columns.is_none()).and_then(|k| k.ahead).filter(is_alike);
        let ahead = ahead.map(|a| ops::Ahead { products: push(a.product), tokens: push(a.rows) });
        let clock = (!self.is_probing).then(|| self.task.clock.clone());
        let op = PanelProduct { operands, combine, unit_columns, ids, ahead, clock };
        self.g.custom(Type::F32, [n_out, states.n(), 1, 1], &sources, op)
    }

    /// All or some rows of a matrix by ggml's kernel; and their bias.
    fn matmul_rows_by_ggml(
        &mut self,
        states: &mut States<'_, 'g>,
        linear: &Linear,
        part: Part<'_, 'g>,
    ) -> (Tensor<'g>, Option<Tensor<'g>>) {
        let g = self.g;
        let rows = match part.rows() {
            None => return (self.all_rows_by_ggml(states, &linear.weight), self.rows_of_bias(linear, part)),
            Some((kept, role)) => match kept.reduced(role).map(|r| &r.matrix) {
                Some(&ReducedMatrix::Ggml(id)) => self.leaf(id),
                _ if linear.weight.kernel == Kernel::Stock => {
                    let tensor = self.leaf(linear.weight.id);
                    let all = linear.weight.among.clone().unwrap_or(0..tensor.ne()[1]);
                    prune::stock_rows(g, tensor, all, kept.ids, kept.width)
                }
                _ => {
                    let (matrix, width) = (linear.weight.rows.clone(), kept.width);
                    let ne = [matrix.n_in(), kept.n * width, 1, 1];
                    g.custom(matrix.ty(), ne, &[kept.ids], GatherRows { matrix, width })
                }
            },
        };
        (g.mul_mat(rows, self.floats(states)), self.rows_of_bias(linear, part))
    }

    /// All rows of a matrix by ggml's kernel. Where it is one of several in a tensor, all of these are multiplied, once for all of them: the
    /// layout that a tensor has in memory may not be one that a part of it has, too.
    fn all_rows_by_ggml(&self, states: &mut States<'_, 'g>, weight: &Weight) -> Tensor<'g> {
        let Some(rows) = weight.among.clone() else {
            return self.g.mul_mat(self.leaf(weight.id), self.floats(states));
        };
        let made = states.products.iter().find(|p| p.0 == weight.id).map(|p| p.1);
        let all = made.unwrap_or_else(|| {
            let all = self.g.mul_mat(self.leaf(weight.id), self.floats(states));
            states.products.push((weight.id, all));
            all
        });
        self.rows_of_product(all, rows)
    }

    /// The columns of kept units of a matrix times the states of these units, and its bias.
    fn matmul_columns(
        &mut self,
        states: &mut States<'_, 'g>,
        linear: &Linear,
        kept: &Kept<'_, 'g>,
        role: Role,
    ) -> Tensor<'g> {
        let g = self.g;
        let n = states.n();
        let matrix = &linear.weight.rows;
        let reduced = kept.reduced(role);
        let product = match reduced.map(|r| &r.matrix) {
            Some(&ReducedMatrix::Ggml(id)) => g.mul_mat(self.leaf(id), self.floats(states)),
            Some(ReducedMatrix::OwnColumns(columns)) if n <= MAX_GEMV_TOKENS => {
                let op = ColumnProduct { columns: columns.clone() };
                g.custom(Type::F32, [matrix.n_out(), n, 1, 1], &[states.x], op)
            }
            // Our kernels multiply kept columns by panels only. For a few tokens of a type that they cannot read in place, ggml's kernel is
            // used: the arm below.
            _ if linear.weight.kernel.is_own(n) => {
                let operand = Operand::all(matrix.clone(), None);
                self.panel_product(states, vec![operand], Combine::Stack, Some(kept), Some(kept.width), matrix.n_out())
            }
            _ if linear.weight.kernel == Kernel::Stock => {
                let columns = prune::stock_columns(g, self.columns_of(kept.block), kept.ids, kept.width);
                g.mul_mat(columns, self.floats(states))
            }
            _ => {
                let (n_columns, width) = (kept.n * kept.width, kept.width);
                let ne = [n_columns, matrix.n_out(), 1, 1];
                let op = GatherColumns { matrix: matrix.clone(), width };
                let columns = g.custom(column_type(matrix, n_columns), ne, &[kept.ids], op);
                g.mul_mat(columns, self.floats(states))
            }
        };
        // The bias of what was reduced in advance has in it what stands in for the other columns.
        let bias = match reduced {
            Some(reduced) => reduced.bias.map(|id| self.leaf(id)),
            None => linear.bias.as_ref().map(|b| self.vector(b)),
        };
        self.biased(product, bias)
    }

    /// The last matrix of a block that a GPU computes, with its columns as rows.
    fn columns_of(&self, block: Block) -> Tensor<'g> {
        let (Pass::Probe { pruning, .. } | Pass::Given(pruning)) = self.task.pass else {
            unreachable!("units are reduced in advance in other passes")
        };
        let (store, resident) = pruning.resident(block).expect("the session has brought it there");
        self.g.leaf(store, resident.columns)
    }

    /// Some rows of a product: a view, unless they are all.
    fn rows_of_product(&self, all: Tensor<'g>, rows: std::ops::Range<usize>) -> Tensor<'g> {
        let ([n_out, n, ..], row) = (all.ne(), all.nb()[1]);
        match rows.len() == n_out {
            true => all,
            false => self.g.view(all, [rows.len(), n, 1, 1], [row, row * n, row * n], 4 * rows.start),
        }
    }

    /// The bias of a matrix, or the kept units' part of it.
    fn rows_of_bias(&self, linear: &Linear, part: Part<'_, 'g>) -> Option<Tensor<'g>> {
        let g = self.g;
        let bias = linear.bias.as_ref()?;
        let Some((kept, role)) = part.rows() else { return Some(self.vector(bias)) };
        if let Some(reduced) = kept.reduced(role) {
            return reduced.bias.map(|id| self.leaf(id));
        }
        let (bias, width) = (self.vector(bias), kept.width);
        let units = g.reshape(bias, [width, bias.ne()[0] / width, 1, 1]);
        Some(g.reshape(g.get_rows(units, kept.ids), [kept.n * width, 1, 1, 1]))
    }

    /// `y + b`
    fn biased(&self, y: Tensor<'g>, bias: Option<Tensor<'g>>) -> Tensor<'g> {
        bias.map_or(y, |b| self.g.add(y, b))
    }

    /// Whether our own kernels attend for the queries that a weight makes: where they multiply it at all.
    pub(super) fn attends(&self, q: &Weight) -> bool {
        q.kernel.is_ever_own() && self.task.cache.params().flash_attn
    }
}
