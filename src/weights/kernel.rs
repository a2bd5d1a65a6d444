//! Which kernel multiplies a weight: a fact of the weight, decided when the model is loaded, by the processor, the type and the shape.
//!
//! No decision is made by timing. A machine that does something else meanwhile would decide otherwise, and other kernels round
//! otherwise: the same file, flags and seed would not give the same answer. What was measured once, for each instruction set and type, is in
//! `kernels.csv`, which `cargo bench --bench kernels -- --table src/weights/kernels.csv` writes.

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
    /// That of the GPU that the weight is on: what the pass does with it is made of ggml's operations alone
    Stock,
}

impl Kernel {
    /// Whether it is our own that multiplies `n_tokens`.
    pub fn is_own(self, n_tokens: usize) -> bool {
        match self {
            Kernel::Ggml | Kernel::Stock => false,
            Kernel::OwnGemm => n_tokens > MAX_GEMV_TOKENS,
            Kernel::Own => true,
        }
    }

    /// Whether it is our own for any number of tokens.
    pub fn is_ever_own(self) -> bool {
        self.is_own(usize::MAX)
    }

    /// Whose they are, in words.
    pub fn words(self) -> &'static str {
        match self {
            Kernel::Own => "pp-run's",
            Kernel::OwnGemm => "pp-run's for prompts and ggml's for answers",
            Kernel::Ggml => "ggml's",
            Kernel::Stock => "ggml's on the GPU",
        }
    }

    /// The kernel of a matrix on the CPU, `[n_in, n_out]` of type `ty`; `is_head` if it makes logits, of few tokens at a time.
    ///
    /// Our own kernels multiply quantised types only.
    pub fn choose(wanted: Kernels, ty: Type, is_head: bool) -> Kernel {
        let own = if has_gemv(ty) { Kernel::Own } else { Kernel::OwnGemm };
        let kernel = match wanted {
            Kernels::Stock => Kernel::Stock,
            _ if !ty.is_quantized() => Kernel::Ggml,
            Kernels::Ggml => Kernel::Ggml,
            Kernels::Native => own,
            Kernels::Auto => Measured::of(&Isa::best().to_string(), &ty.name()).map_or(Kernel::Ggml, |m| m.fastest()),
        };
        match kernel {
            // An answer's logits are made for one token at a time, by ggml's kernel. Scores of texts use the same one, so that both see
            // the same model.
            Kernel::OwnGemm if is_head => Kernel::Ggml,
            kernel => kernel,
        }
    }
}

/// A row of `kernels.csv`: what two cores do of a product with a matrix of some type, in billions of operations a second.
struct Measured {
    /// Instruction set, type
    of: [&'static str; 2],
    /// Ours: of 512 tokens, and of one if we have a kernel for few
    own: [Option<f64>; 2],
    /// ggml's: of 512 tokens, of one with weights as it rearranges them
    ggml: [f64; 2],
    /// ggml's of one token, with weights as they are in the file: what it multiplies where many tokens are ours
    ggml_in_file: f64,
}

impl Measured {
    /// All rows.
    fn all() -> &'static [Measured] {
        static ALL: LazyLock<Vec<Measured>> = LazyLock::new(|| {
            let lines = include_str!("kernels.csv").lines().filter(|l| !l.starts_with('#'));
            lines.map(Measured::read).collect::<Option<_>>().expect("kernels.csv is what the benchmark wrote")
        });
        &ALL
    }

    fn read(line: &'static str) -> Option<Measured> {
        let fields: [&str; 7] = line.split(',').collect::<Vec<_>>().try_into().ok()?;
        let [isa, ty, numbers @ ..] = fields;
        let [own, own_one, ggml, ggml_one, ggml_in_file] = numbers.map(|x| x.parse().ok());
        Some(Measured { of: [isa, ty], own: [own, own_one], ggml: [ggml?, ggml_one?], ggml_in_file: ggml_in_file? })
    }

    /// The row of an instruction set and a type, if they were measured: NEON was not, on a real machine, and ggml's kernels are tuned for it;
    /// without vector instructions ours are slower.
    fn of(isa: &str, ty: &str) -> Option<&'static Measured> {
        Measured::all().iter().find(|m| m.of == [isa, ty])
    }

    /// What takes least time for a prompt of 512 tokens and an answer of 128.
    fn fastest(&self) -> Kernel {
        let time = |prompt: f64, answer: f64| 512.0 / prompt + 128.0 / answer;
        let all = [
            (Kernel::Own, self.own[0].zip(self.own[1]).map(|(prompt, answer)| time(prompt, answer))),
            (Kernel::OwnGemm, self.own[0].map(|prompt| time(prompt, self.ggml_in_file))),
            (Kernel::Ggml, Some(time(self.ggml[0], self.ggml[1]))),
        ];
        let times = all.into_iter().filter_map(|(kernel, time)| Some((kernel, time?)));
        times.min_by(|a, b| a.1.total_cmp(&b.1)).expect("ggml's").0
    }
}

/// Types by the kernel that `auto` takes for them on the CPU, in words: "pp-run's: Q4_0 Q4_K".
pub fn by_kernel(types: &[Type]) -> Vec<String> {
    let of = |kernel: Kernel| {
        let types = types.iter().filter(|ty| Kernel::choose(Kernels::Auto, **ty, false) == kernel);
        let names: Vec<String> = types.map(|ty| ty.name()).collect();
        (!names.is_empty()).then(|| format!("{}: {}", kernel.words(), names.join(" ")))
    };
    [Kernel::Own, Kernel::OwnGemm, Kernel::Ggml].into_iter().filter_map(of).collect()
}

/// The quantised types that ggml multiplies.
pub fn quantised_types() -> Vec<Type> {
    let types = (0..u32::from(u8::MAX)).filter_map(Type::from_id);
    types.filter(|ty| ty.is_quantized() && ty.multiplies(Type::F32)).collect()
}

/// Our kernels' format of a type, if they decode it themselves.
pub fn format(ty: Type) -> Option<Format<'static>> {
    static KNOWN: LazyLock<Vec<(Type, Format<'static>)>> = LazyLock::new(|| {
        let types = (0..u32::from(u8::MAX)).filter_map(Type::from_id);
        types.filter_map(|ty| Some((ty, Format::from_name(&ty.name())?))).collect()
    });
    KNOWN.iter().find(|known| known.0 == ty).map(|known| known.1)
}

/// Whether activations that our kernels multiply with rows of a type share scales: see [`Format::shares_scales`].
pub fn shares_scales(ty: Type) -> bool {
    format(ty).is_some_and(Format::shares_scales)
}

/// Whether our kernels multiply rows of a type where they are.
pub fn has_gemv(ty: Type) -> bool {
    format(ty).is_some_and(Format::has_gemv)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_was_measured_with_every_instruction_set() {
        let mut expected: Vec<[String; 2]> = ["AVX-512", "AVX-VNNI", "AVX2"]
            .iter()
            .flat_map(|isa| quantised_types().into_iter().map(|ty| [isa.to_string(), ty.name()]))
            .collect();
        let mut rows: Vec<[String; 2]> = Measured::all().iter().map(|m| m.of.map(str::to_owned)).collect();
        expected.sort();
        rows.sort();
        assert_eq!(rows, expected);
        for m in Measured::all() {
            let is_read_in_place = Format::from_name(m.of[1]).is_some_and(Format::has_gemv);
            assert_eq!(m.own[1].is_some(), is_read_in_place, "{:?}", m.of);
            assert!(m.own[0].is_some(), "{:?}: our panels take every type", m.of);
        }
    }

    #[test]
    fn the_fastest_for_prompt_and_answer_together() {
        let measured = |own, ggml, ggml_in_file| Measured { of: ["", ""], own, ggml, ggml_in_file };
        assert_eq!(measured([Some(300.0), Some(60.0)], [150.0, 65.0], 50.0).fastest(), Kernel::Own);
        assert_eq!(measured([Some(300.0), Some(40.0)], [150.0, 65.0], 60.0).fastest(), Kernel::OwnGemm);
        assert_eq!(measured([Some(300.0), None], [280.0, 65.0], 40.0).fastest(), Kernel::Ggml);
    }

    #[test]
    fn other_kernels_are_what_was_asked_for() {
        let ty = |name: &str| quantised_types().into_iter().find(|ty| ty.name() == name).expect("a type of ggml's");
        assert_eq!(Kernel::choose(Kernels::Ggml, ty("Q4_0"), false), Kernel::Ggml);
        assert_eq!(Kernel::choose(Kernels::Native, ty("Q4_0"), false), Kernel::Own);
        assert_eq!(Kernel::choose(Kernels::Native, ty("IQ3_S"), false), Kernel::OwnGemm);
        assert_eq!(Kernel::choose(Kernels::Native, ty("IQ3_S"), true), Kernel::Ggml);
        assert_eq!(Kernel::choose(Kernels::Native, Type::F32, false), Kernel::Ggml);
    }
}
