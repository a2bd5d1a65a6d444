//! Any text as a chat template.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pp_run::chat::{Message, Role, Template};

fuzz_target!(|text: &str| {
    let Ok(template) = Template::new("t".into(), text.into(), Some("<s>".into()), Some("</s>".into())) else { return };
    let message = |role, content: &str| Message { role, content: content.into() };
    let turns = [message(Role::System, "S"), message(Role::User, "U"), message(Role::Assistant, "A"), message(Role::User, "V")];
    let _ = template.render(&turns, true, &Default::default());
});
