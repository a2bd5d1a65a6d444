//! What an architecture consists of.

use ggml::TensorId;

use crate::error::Result;
use crate::graph::{GraphBuilder, GraphSlots};
use crate::model::hparams::Hparams;
use crate::model::keys::Keys;
use crate::model::options::RopeOptions;
use crate::weights::{Layer, Loader, Norm, Weight};

/// An architecture: from metadata to hyper-parameters, from these to tensors, from these to a graph.
pub struct Architecture {
    /// As `general.architecture` names it
    pub name: &'static str,
    /// Reads and checks the hyper-parameters; the number of tokens in the vocabulary is known
    pub hparams: fn(&Keys, usize, &RopeOptions) -> Result<Hparams>,
    /// Asks the loader for the tensors, with their shapes
    pub tensors: fn(&mut Loader, &Hparams) -> Result<Tensors>,
    /// Builds the graph of a micro-batch, node by node as llama.cpp, so that results agree bit by bit
    pub graph: fn(GraphBuilder, &Tensors) -> GraphSlots,
}

/// Weights of a model.
#[derive(Debug)]
pub struct Tensors {
    /// `[n_embd, n_vocab]`
    pub tok_embd: TensorId,
    /// The layers, from the first to the last
    pub layers: Vec<Layer>,
    /// Before the output matrix
    pub output_norm: Norm,
    /// `[n_embd, n_vocab]`: makes logits of states
    pub output: Weight,
}

impl std::fmt::Debug for Architecture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}
