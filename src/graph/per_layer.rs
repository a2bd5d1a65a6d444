//! Embeddings that each layer has of its own, and the block that reads them.

use ggml::Tensor;

use super::builder::GraphBuilder;
use super::inputs::{Input, Rows};
use super::matmul::Part;
use super::states::States;
use crate::weights::{PerLayer, PerLayerEmbeddings, Vector};

impl<'g> GraphBuilder<'_, 'g> {
    /// What each layer has of the tokens, F32 `[n_embd_per_layer, n_tokens, n_layer]`; `x` `[n_embd, n_tokens]` are their embeddings.
    pub fn embed_per_layer(&mut self, x: Tensor<'g>, w: &PerLayerEmbeddings) -> Tensor<'g> {
        let g = self.g;
        let ([n_embd, n_tokens, ..], n_layer) = (x.ne(), self.task.n_layer);
        let ne = [w.n, n_layer, n_tokens, 1];
        let tokens = self.inputs.get(Input::Tokens);
        let of_table = g.scale(g.get_rows(self.leaf(w.table), tokens), (w.n as f32).sqrt());
        let projected = self.matmul_weight(&mut States::new(x), &w.projection);
        let projected = g.reshape(g.scale(projected, 1.0 / (n_embd as f32).sqrt()), ne);
        let both = g.add(self.norm(projected, &w.norm), g.reshape(of_table, ne));
        let both = g.scale(both, 1.0 / 2.0f32.sqrt());
        g.cont(g.permute(both, [0, 2, 1, 3]), [w.n, n_tokens, n_layer, 1])
    }

    /// The residual stream `x` `[n_embd, n]` after the block that reads what layer `il` has of `embeddings`, see
    /// [`GraphBuilder::embed_per_layer`].
    pub fn per_layer(&mut self, x: Tensor<'g>, w: &PerLayer, embeddings: Tensor<'g>, il: usize) -> Tensor<'g> {
        let g = self.g;
        let ([n, n_tokens, ..], [_, token, layer, _]) = (embeddings.ne(), embeddings.nb());
        let mut of_layer = g.view(embeddings, [n, n_tokens, 1, 1], [token, layer, layer], il * layer);
        // Beyond the last layer's attention there are the wanted rows only.
        if x.ne()[1] < n_tokens {
            let wanted = self.inputs.get(Input::Numbers(Rows::Wanted));
            of_layer = g.get_rows(of_layer, wanted);
        }
        let gate = g.gelu(self.matmul(&mut States::new(x), &w.gate, Part::All));
        let out = self.matmul(&mut States::new(g.mul(gate, of_layer)), &w.output, Part::All);
        let out = self.norm(out, &w.norm);
        self.name(out, "per_layer_embd_out", il);
        g.add(x, out)
    }

    /// `x` times a factor of the weights, if there is one.
    pub fn times(&self, x: Tensor<'g>, factor: &Option<Vector>) -> Tensor<'g> {
        factor.as_ref().map_or(x, |factor| self.g.mul(x, self.vector(factor)))
    }
}
