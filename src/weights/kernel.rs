//! Which kernel multiplies a weight: a fact of the weight, decided when the model is loaded, by the processor, the type and the shape.
//!
//! No decision is made by timing. A machine that does something else meanwhile would decide otherwise, and other kernels round
//! otherwise: the same file, flags and seed would not give the same answer.

use std::sync::LazyLock;

use ggml::Type;
use kernels::{Format, Isa, MAX_GEMV_TOKENS};

use super::options::Kernels;

/// Whose kernel multiplies a weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernel {
    /// ggml's, for any number of tokens
    Ggml,
    /// Our own matrix products for more than [`MAX_GEMV_TOKENS`] tokens; ggml's for fewer, as we have no kernel that reads rows of this
    /// type where they are
    OwnGemm,
    /// Our own, for any number of tokens
    Own,
}

impl Kernel {
    /// Whether it is our own that multiplies `n_tokens`.
    pub fn is_own(self, n_tokens: usize) -> bool {
        match self {
            Kernel::Ggml => false,
            Kernel::OwnGemm => n_tokens > MAX_GEMV_TOKENS,
            Kernel::Own => true,
        }
    }

    /// The kernel of a matrix on the CPU, `[n_in, n_out]` of type `ty`; `is_head` if it makes logits, of few tokens at a time.
    ///
    /// Our own kernels multiply quantised types only.
    pub fn choose(wanted: Kernels, ty: Type, is_head: bool) -> Kernel {
        let is_own = match wanted {
            Kernels::Ggml => false,
            Kernels::Native => true,
            Kernels::Auto => is_faster(),
        };
        match has_gemv(ty) {
            _ if !is_own || !ty.is_quantized() => Kernel::Ggml,
            true => Kernel::Own,
            // An answer's logits are made for one token at a time, by ggml's kernel. Scores of texts use the same one, so that both see
            // the same model.
            false if is_head => Kernel::Ggml,
            false => Kernel::OwnGemm,
        }
    }
}

/// Whether our kernels are to be taken on this processor. On x86 from AVX2 on they were faster than ggml's for prompts in all types that were
/// measured, if little so with Q4_K and Q6_K on AVX2; for single tokens they were between 0.7 times as fast (Q4_K, MXFP4 on AVX2) and 1.3
/// times (`cargo bench --bench kernels`; tests/bench/README.md). On ARM they were never measured on a real machine, and ggml's are tuned for
/// it; without vector instructions ours are slower.
fn is_faster() -> bool {
    cfg!(target_arch = "x86_64") && !Isa::best().is_portable()
}

/// Our kernels' format of a type, if they decode it themselves.
pub fn format(ty: Type) -> Option<Format<'static>> {
    static KNOWN: LazyLock<Vec<(Type, Format<'static>)>> = LazyLock::new(|| {
        let types = (0..u32::from(u8::MAX)).filter_map(Type::from_id);
        types.filter_map(|ty| Some((ty, Format::from_name(&ty.name())?))).collect()
    });
    KNOWN.iter().find(|known| known.0 == ty).map(|known| known.1)
}

/// Whether our kernels multiply rows of a type where they are.
pub fn has_gemv(ty: Type) -> bool {
    format(ty).is_some_and(Format::has_gemv)
}
