//! Manual pages and completions, made from the grammar itself.

use std::fs;
use std::path::{Path, PathBuf};

use clap::{Args, Command, CommandFactory};
use clap_complete::Shell;

use super::{Bowline, Outcome};
use crate::control::api::{Kind, Problem};

#[derive(Debug, Args)]
pub struct Completions {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

impl Completions {
    pub fn run(self) -> Result<Outcome, Problem> {
        let mut text = Vec::new();
        clap_complete::generate(self.shell, &mut Bowline::command(), "bowline", &mut text);
        super::output::print(&String::from_utf8_lossy(&text))?;
        Ok(Outcome::Well)
    }
}

#[derive(Debug, Args)]
pub struct Manual {
    /// The folder; pages go to its man, completions to its completions
    folder: PathBuf,
}

impl Manual {
    pub fn run(self) -> Result<Outcome, Problem> {
        self.write().map_err(|error| {
            Problem::new(Kind::Failed, format!("cannot write into {}", self.folder.display()))
                .why(error.to_string())
        })?;
        Ok(Outcome::Well)
    }

    fn write(&self) -> std::io::Result<()> {
        let (pages, completions) = (self.folder.join("man"), self.folder.join("completions"));
        fs::create_dir_all(&pages)?;
        fs::create_dir_all(&completions)?;
        let mut command = Bowline::command();
        command.build();
        page(&command, "bowline", &pages)?;
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            clap_complete::generate_to(shell, &mut Bowline::command(), "bowline", &completions)?;
        }
        Ok(())
    }
}

/// One page a verb: bowline.1, bowline-disk.1, bowline-disk-create.1, ...
fn page(command: &Command, name: &str, folder: &Path) -> std::io::Result<()> {
    let named = command.clone().display_name(name.to_string());
    let file = folder.join(format!("{name}.1"));
    clap_mangen::Man::new(named).render(&mut fs::File::create(file)?)?;
    let verbs = command.get_subcommands();
    for verb in verbs.filter(|verb| !verb.is_hide_set() && verb.get_name() != "help") {
        page(verb, &format!("{name}-{}", verb.get_name()), folder)?;
    }
    Ok(())
}
