//! The blocks of a model, and their units: what can be left out.

use std::collections::BTreeMap;

use crate::weights::{Dims, Layer, Linear};

/// One of the two blocks of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BlockKind {
    /// Attention: its units are query heads.
    Attn,
    /// MLP: its units are channels.
    Mlp,
}

/// A block of the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Block {
    /// Layer
    pub il: usize,
    /// Which of its blocks
    pub kind: BlockKind,
}

/// Kept units of each pruned block, ascending.
pub type Masks = BTreeMap<Block, Vec<i32>>;

/// All blocks of a model of which something can be left out, layer by layer.
pub fn all_blocks(dims: &Dims) -> impl Iterator<Item = Block> + use<> {
    let dims = dims.clone();
    let of_layer = |il| [BlockKind::Attn, BlockKind::Mlp].map(|kind| Block { il, kind });
    (0..dims.n_layer()).flat_map(of_layer).filter(move |block| block.units(&dims) > 0)
}

impl BlockKind {
    /// Name in dumps.
    pub fn name(self) -> &'static str {
        match self {
            BlockKind::Attn => "attn",
            BlockKind::Mlp => "mlp",
        }
    }

    /// What its units are.
    pub fn unit(self) -> &'static str {
        match self {
            BlockKind::Attn => "head",
            BlockKind::Mlp => "channel",
        }
    }
}

impl Block {
    /// Its heads or channels; 0 if nothing of it can be left out.
    pub fn units(self, dims: &Dims) -> usize {
        let layer = &dims.layers[self.il];
        match self.kind {
            BlockKind::Attn => layer.n_head,
            BlockKind::Mlp => layer.n_ff,
        }
    }

    /// Width of a unit: input channels of the block's last matrix.
    pub fn width(self, dims: &Dims) -> usize {
        match self.kind {
            BlockKind::Attn => dims.layers[self.il].n_embd_head,
            BlockKind::Mlp => 1,
        }
    }

    /// The matrix that makes its output.
    pub fn last(self, layers: &[Layer]) -> &Linear {
        match self.kind {
            BlockKind::Attn => &layers[self.il].attn.output,
            BlockKind::Mlp => layers[self.il].mlp.last(),
        }
    }

    /// Whether all of it is left out or nothing: attention with the keys and values of another layer. A probe attends among its own rows, and
    /// has no keys of them there.
    pub fn is_whole(self, dims: &Dims) -> bool {
        self.kind == BlockKind::Attn && dims.layers[self.il].shares_kv_of.is_some()
    }

    /// Input channels of the block's last matrix.
    pub fn channels(self, dims: &Dims) -> usize {
        self.units(dims) * self.width(dims)
    }

    /// Weights of the block if it keeps `kept` units; `whole_kv` counts keys and values of all heads.
    pub fn weights(self, dims: &Dims, kept: usize, whole_kv: bool) -> usize {
        let layer = &dims.layers[self.il];
        match self.kind {
            BlockKind::Attn => {
                let is_read = dims.layers.iter().any(|l| l.shares_kv_of == Some(self.il));
                let shrinks = !whole_kv && layer.n_head == layer.n_head_kv && !is_read;
                let kv = match layer.shares_kv_of {
                    Some(_) => 0,
                    None if shrinks => kept,
                    None => layer.n_head_kv,
                };
                dims.n_embd * layer.n_embd_head * 2 * (kept + kv)
            }
            BlockKind::Mlp => layer.n_ff_matrices * dims.n_embd * kept,
        }
    }
}
