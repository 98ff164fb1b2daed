//! `make demo`: a Linux guest lives on a Bowline disk, and every Bowline process is killed in the
//! middle of its work.

use std::path::PathBuf;
use std::process::ExitCode;

use bowline_testbed::server::Setup;
use bowline_testbed::story::{Plot, run};

fn main() -> ExitCode {
    let program = std::env::args_os().nth(1).map_or_else(beside, PathBuf::from);
    let setup = Setup::new(&program.to_string_lossy());
    let plot = Plot { file_system: "ext4".into(), kills: 3, records: 100 };
    match run(setup, &plot, &mut |line| println!("{line}")) {
        Ok(ending) => {
            let all = ending.journal + ending.transactions + ending.unflushed;
            println!("\n{all} promises, 3 deaths, nothing lost. The guest never noticed more than");
            println!("a pause: same kernel, same process, no error.");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("\nThe demo failed: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The program that was built together with this one.
fn beside() -> PathBuf {
    let own = std::env::current_exe().unwrap_or_default();
    own.with_file_name("bowline")
}
