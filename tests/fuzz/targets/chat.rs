//! Any bytes as a saved chat, and as the lines after the first of one; what can be read goes on with another turn, with the same model and
//! with another.
#![no_main]

#[allow(dead_code, reason = "tests use the rest")]
#[path = "../../common/forge.rs"]
mod forge;

use std::path::Path;

use forge::Forge;
use libfuzzer_sys::fuzz_target;
use pp_run::chat::{Conversation, Past, Role, Template};
use pp_run::chat::template::Source as TemplateSource;
use pp_run::gguf::Gguf;
use pp_run::tokenizer::{Token, Tokenizer};

const HEAD: &[u8] = b"{\"type\":\"chat\",\"version\":1,\"created\":\"now\",\"model\":\"m\",\"fingerprint\":\"f\"}\n";

thread_local! {
    static CHATML: (Template, Tokenizer) = {
        let gguf = Gguf::of_bytes(Path::new("m"), &Forge::smallest().doc().bytes()).expect("a good model");
        let source = TemplateSource::TextOrName("chatml".into());
        let template = Template::load(Some(&source), &gguf, Some("<s>".into()), Some("</s>".into()));
        (template.expect("a good template").expect("there is one"), Tokenizer::load(&gguf).expect("a good tokenizer"))
    };
}

fn check(bytes: &[u8], template: &Template, tokenizer: &Tokenizer) {
    let Ok(past) = Past::parse(bytes) else { return };
    let roles: Vec<Role> = past.turns.iter().map(|t| t.message.role).collect();
    assert_ne!(roles.last(), Some(&Role::User), "every question has an answer");
    assert!(!past.title().is_empty());
    for (same_model, parse_special) in [(true, false), (false, true)] {
        let mut conversation = Conversation::new(template, tokenizer, None, parse_special);
        conversation.resume(past.turns.clone(), same_model);
        let prompt = conversation.ask("and now?");
        let known = |t: &Token| usize::try_from(*t).is_ok_and(|t| t < tokenizer.n_vocab());
        if let Ok(prompt) = &prompt {
            assert!(!prompt.is_empty() && prompt.iter().all(known), "a prompt is of the vocabulary");
            assert_eq!(prompt, &conversation.timeline());
            conversation.answer("abc", &[70, 71, 72], false).expect("an answer is taken");
            assert_eq!(conversation.turns().len(), past.turns.len() + 2);
            let asked = conversation.undo().expect("what was asked");
            assert_eq!(conversation.ask(&asked).as_ref().ok(), Some(prompt), "the same prompt again");
            conversation.undo();
        }
        assert_eq!(conversation.turns().len(), past.turns.len());
        // Back to the beginning.
        while let Some(asked) = conversation.undo() {
            let again = conversation.clone().ask(&asked);
            assert!(again.is_err() || again.is_ok_and(|a| a.iter().all(known)), "a prompt is of the vocabulary");
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    CHATML.with(|(template, tokenizer)| {
        check(bytes, template, tokenizer);
        check(&[HEAD, bytes].concat(), template, tokenizer);
    });
});
