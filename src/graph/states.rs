//! States that matrices multiply, in the forms that kernels ask for.

use ggml::{Tensor, TensorId};

use crate::weights::Norm;

/// States `[k, n]` that one or several matrices multiply. Each form is made when a kernel first asks for it, and then shared.
#[derive(Debug, Clone)]
pub struct States<'n, 'g> {
    /// F32 `[k, n]`, before the norm
    pub x: Tensor<'g>,
    /// The norm that comes first, if any: our kernels do it together with what follows
    pub norm: Option<&'n Norm>,
    /// F32 `[k, n]`, after the norm
    pub floats: Option<Tensor<'g>>,
    /// I32 `[words(k), n]`: the same in 8 bits, with a scale for each group, and with one for four groups
    pub codes: [Option<Tensor<'g>>; 2],
    /// Products with whole tensors by ggml's kernels of which other matrices are parts, too
    pub products: Vec<(TensorId, Tensor<'g>)>,
}

impl<'n, 'g> States<'n, 'g> {
    /// States as they are.
    pub fn new(x: Tensor<'g>) -> States<'n, 'g> {
        States { x, norm: None, floats: None, codes: [None; 2], products: Vec::new() }
    }

    /// The norm of `x`.
    pub fn normalised(x: Tensor<'g>, norm: &'n Norm) -> States<'n, 'g> {
        States { x, norm: Some(norm), floats: None, codes: [None; 2], products: Vec::new() }
    }

    /// Number of rows.
    pub fn n(&self) -> usize {
        self.x.ne()[1]
    }
}
