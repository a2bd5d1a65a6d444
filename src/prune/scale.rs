//! KL divergences in words: which quantisation of a model is as far from the model itself.
//!
//! `quantisations.csv` has what was measured, a line for each model and type: the model's name (`general.name`), architecture and number of
//! parameters, by which it is recognised, the type, and the mean divergence in nats per token. `tests/bench/quantisations` prints such lines.
//! Models that are not in it have the scale of its first model.

use std::sync::LazyLock;

/// A line of `quantisations.csv`.
#[derive(Debug, PartialEq)]
struct Measured {
    /// Name, architecture and number of parameters
    model: (&'static str, &'static str, u64),
    ty: &'static str,
    kl: f64,
}

impl Measured {
    fn all() -> &'static [Measured] {
        static ALL: LazyLock<Vec<Measured>> = LazyLock::new(|| {
            let lines = include_str!("quantisations.csv").lines().filter(|l| !l.starts_with('#'));
            lines.map(Measured::read).collect::<Option<_>>().expect("quantisations.csv has lines of five fields")
        });
        &ALL
    }

    fn read(line: &'static str) -> Option<Measured> {
        // A name may have commas.
        let fields: [&str; 5] = line.rsplitn(5, ',').collect::<Vec<_>>().try_into().ok()?;
        let [kl, ty, n_params, architecture, name] = fields;
        Some(Measured { model: (name, architecture, n_params.parse().ok()?), ty, kl: kl.parse().ok()? })
    }
}

/// Quantisations of a model by their divergence, the least first.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scale {
    steps: &'static [Measured],
    /// They were measured on the model itself
    is_own: bool,
}

impl Default for Scale {
    /// The one for models that were not measured.
    fn default() -> Scale {
        let of_one = Measured::all().chunk_by(|a, b| a.model == b.model).next();
        Scale { steps: of_one.expect("quantisations.csv has lines"), is_own: false }
    }
}

impl Scale {
    /// The scale of a model: its own if it was measured.
    pub fn of(name: &str, architecture: &str, n_params: u64) -> Scale {
        let mut models = Measured::all().chunk_by(|a, b| a.model == b.model);
        let own = models.find(|of_one| of_one[0].model == (name, architecture, n_params));
        own.map_or_else(Scale::default, |steps| Scale { steps, is_own: true })
    }

    /// Where a divergence lies, and on whose scale: "as Q5_K_M of Llama-3-8B".
    pub fn in_words(self, kl: f64) -> String {
        let whose = if self.is_own { "this model" } else { self.steps[0].model.0 };
        let distance = |step: &Measured| (kl / step.kl).ln().abs();
        let nearest = self.steps.iter().min_by(|a, b| distance(a).total_cmp(&distance(b)));
        let at = match (nearest, self.steps.iter().position(|step| step.kl > kl)) {
            (Some(nearest), _) if distance(nearest) < 0.15 => format!("as {}", nearest.ty),
            (_, Some(0)) => format!("less than {}", self.steps[0].ty),
            (_, Some(i)) => format!("between {} and {}", self.steps[i - 1].ty, self.steps[i].ty),
            (_, None) => format!("more than {}", self.steps[self.steps.len() - 1].ty),
        };
        format!("{at} of {whose}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words() {
        let scale = Scale::of("a model that was not measured", "llama", 1);
        assert_eq!(scale, Scale::default());
        for (kl, words) in [
            (0.0, "less than Q8_0"),
            (0.001, "less than Q8_0"),
            (0.0055, "as Q6_K"),
            (0.008, "between Q6_K and Q5_K_M"),
            (0.01, "as Q5_K_M"),
            (0.05, "between Q4_K_M and Q3_K_M"),
            (0.5, "more than Q3_K_M"),
        ] {
            assert_eq!(scale.in_words(kl), format!("{words} of Llama-3-8B"));
        }
    }

    #[test]
    fn each_model_has_a_scale_that_rises() {
        for of_one in Measured::all().chunk_by(|a, b| a.model == b.model) {
            assert!(of_one.is_sorted_by(|a, b| 0.0 < a.kl && a.kl <= b.kl), "{of_one:?}");
            let (name, architecture, n_params) = of_one[0].model;
            let own = Scale::of(name, architecture, n_params);
            assert!(own.steps == of_one && own.is_own);
            assert_eq!(own.in_words(of_one[0].kl), format!("as {} of this model", of_one[0].ty));
            // Another model of the same name is not this one.
            assert!(!Scale::of(name, architecture, n_params + 1).is_own);
        }
    }
}
