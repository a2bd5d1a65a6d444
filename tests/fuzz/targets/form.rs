//! Any text as a JSON schema and as a grammar.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pp_run::constraint::{Form, Grammar, Source};

fuzz_target!(|text: &str| {
    for form in [Form::Schema, Form::Grammar] {
        let _ = Grammar::new(&form(Source::Text(text.into())));
    }
});
