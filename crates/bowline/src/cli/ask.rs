//! Questions before something is lost: answered on a terminal, or by `--yes`, never assumed.

use std::io::{self, BufRead, IsTerminal, Write};

use super::usage;
use crate::control::api::{Kind, Problem};

/// Asks for a word to be typed. Without a terminal there is nobody to ask, and `--yes` is needed.
pub fn typed(what: &str, word: &str, yes: bool) -> Result<(), Problem> {
    if yes {
        return Ok(());
    }
    let input = io::stdin();
    if !input.is_terminal() {
        return Err(usage(what.to_string())
            .why("there is no terminal to ask on")
            .next("say --yes if that is meant"));
    }
    eprint!("{what}\nType `{word}` to go on: ");
    let _ = io::stderr().flush();
    let mut line = String::new();
    let read = input.lock().read_line(&mut line);
    if read.is_ok() && line.trim() == word {
        return Ok(());
    }
    Err(Problem::new(Kind::No, "nothing was changed"))
}
