//! What the stages need of blocks that a GPU computes, in its memory: constants, what the probe's energy is fused with, and the columns of
//! the last matrices.

use std::collections::BTreeMap;
use std::rc::Rc;

use ggml::{Store, TensorId, Type, Usage};

use super::block::{Block, BlockKind};
use super::made::{Fill, Made};
use super::options::{HistoryKind, Method, Options};
use super::reduced::{reducible_bytes, unit_width};
use super::score::BlockState;
use crate::error::Result;
use crate::system::memory::Needs;
use crate::weights::{Kernel, Layer, Linear, Matrix, Mlp, Placement};

/// The numbers of one block.
#[derive(Debug)]
pub struct ResidentBlock {
    /// F32 `[n_channels]`; `None` if the block is not probed
    pub constants: Option<TensorId>,
    /// F32 `[n_channels]`
    pub prior: Option<TensorId>,
    /// F32 `[n_channels, n_pos]`
    pub history: Option<TensorId>,
    /// `[n_out, n_channels]`: the last matrix with its columns as rows
    pub columns: TensorId,
}

/// Tensors of the blocks that GPUs compute.
#[derive(Debug)]
pub struct Resident {
    store: Rc<Store>,
    blocks: BTreeMap<Block, ResidentBlock>,
}

impl Resident {
    /// Brings there what is known of `blocks`, each with its last matrix, on `n_threads` threads. [`crate::error::Kind::Memory`] if it does not
    /// fit.
    pub fn new<'a>(
        placement: &Placement,
        blocks: impl Iterator<Item = (Block, &'a Linear, Option<&'a BlockState>)>,
        n_threads: usize,
    ) -> Result<Resident> {
        let mut made = Made::new(placement, "the columns of what is pruned on the GPU");
        let mut ids = BTreeMap::new();
        for (block, last, state) in blocks {
            let il = block.il;
            let matrix = &last.weight.rows;
            let ne = [matrix.n_out(), matrix.n_in()];
            let ty = row_type(matrix);
            let columns = made.push("columns", ty, ne, Usage::GetRows, il, Fill::Transposed(matrix, ty))?;
            let mut resident = ResidentBlock { constants: None, prior: None, history: None, columns };
            if let Some(state) = state {
                let n = state.constants.len();
                resident.constants = Some(made.push_floats("constants", &state.constants, [n, 1], il)?);
                resident.prior =
                    (state.prior.as_ref()).map(|p| made.push_floats("prior", p, [n, 1], il)).transpose()?;
                if let Some(history) = &state.history {
                    let history = history.read().expect("no writer panics");
                    let means = history.means();
                    resident.history = Some(made.push_floats("history", means, [n, means.len() / n], il)?);
                }
            }
            ids.insert(block, resident);
        }
        let (store, _) = made.make(n_threads)?;
        Ok(Resident { store: Rc::new(store), blocks: ids })
    }

    /// Where the tensors are.
    pub fn store(&self) -> &Rc<Store> {
        &self.store
    }

    /// Those of a block; `None` if the CPU computes it, or it is not pruned.
    pub fn block(&self, block: Block) -> Option<&ResidentBlock> {
        self.blocks.get(&block)
    }

    /// Takes in rows of a block's history, from `first` on, that have changed.
    pub fn write_history(&self, block: Block, first: usize, rows: &[f32]) {
        let Some(id) = self.block(block).and_then(|b| b.history) else { return };
        let bytes: Vec<u8> = rows.iter().flat_map(|x| x.to_le_bytes()).collect();
        self.store.write(id, 4 * first, &bytes);
    }
}

/// Bytes of each GPU's memory that pruning by these options takes at most in a context of `n_ctx` tokens: what is resident of all blocks, and
/// the weights that are reduced in advance.
pub fn copies(layers: &[Layer], placement: &Placement, options: &Options, n_ctx: usize) -> Needs {
    // Masks that do not look at a batch are fixed, and their weights are reduced for prompts, too: nothing is gathered from columns then.
    let looks = options.method.looks_at_batch();
    let reduced = if looks { options.answer } else { options.ratio };
    // FLAP leaves out more of some blocks than of others, and nothing of some.
    let is_even = !matches!(options.method, Method::Flap | Method::FlapAsCoded);
    let share = |n_channels: usize, most_more: usize| match reduced {
        0.0 => 0.0,
        _ if !is_even => 1.0,
        _ => (1.0 - reduced + most_more as f64 / n_channels as f64).min(1.0),
    };
    let mut needs = Needs::default();
    for (il, layer) in layers.iter().enumerate().skip(options.skip) {
        let is_expert = matches!(layer.mlp, Mlp::Experts(_));
        let kinds = [(BlockKind::Attn, !options.mlp_only), (BlockKind::Mlp, !is_expert)];
        for kind in kinds.into_iter().filter(|k| k.1).map(|k| k.0) {
            let weight = &Block { il, kind }.last(layers).weight;
            if weight.kernel != Kernel::Stock {
                continue;
            }
            let matrix = &weight.rows;
            let columns = row_type(matrix).row_bytes(matrix.n_out()).unwrap_or(0) * matrix.n_in();
            let positions = if options.history == HistoryKind::Position { n_ctx } else { 1 };
            let numbers = 4 * matrix.n_in() * (2 + positions);
            let resident = if looks { columns + numbers } else { 0 };
            // What is kept is rounded up, to whole heads or to a multiple of channels.
            let most_more = options.multiple.max(unit_width(layer, kind));
            let in_advance = share(matrix.n_in(), most_more) * reducible_bytes(layer, kind) as f64;
            needs.add(placement.device(il), resident as u64 + in_advance as u64);
        }
    }
    needs
}

/// Type of a matrix's columns as rows. Those of a quantised type share no scales with each other, so that they are quantised anew, to 8 bits.
fn row_type(matrix: &Matrix) -> Type {
    match matrix.ty() {
        ty if !ty.is_quantized() => ty,
        _ if Type::Q8_0.row_bytes(matrix.n_out()).is_some() => Type::Q8_0,
        _ => Type::F16,
    }
}
