//! `bowline-sim`: runs seeds of the simulator and says what came of them.
//!
//! Around the simulator there is a clock, two threads and a terminal; inside a seed there is none
//! of them, so the core's bans are lifted here and nowhere else.
#![expect(clippy::disallowed_methods, reason = "threads, arguments and a clock around the seeds")]
#![expect(clippy::disallowed_types, reason = "a clock around the seeds")]

use std::ops::Range;
use std::process::ExitCode;
use std::time::Instant;

use bowline_sim::pool::{BROKEN, Pool};
use bowline_sim::reference::{BUGS, Reference};
use bowline_sim::{
    Coverage, Exploration, Options, Report, Subject, explore, find, run_seed, run_seeds,
};

const USAGE: &str = "\
usage: bowline-sim run [--seeds A..B] [--jobs N] [OPTION]...   seeds, one verdict line
       bowline-sim run --seed N [--trace] [OPTION]...          one seed, event by event
       bowline-sim broken NAME|all [--seeds A..B] [OPTION]...  each must be found
       bowline-sim explore [--seeds A..B] [--stride N]         every prefix of the stores

options: --operations N   of a seed (2000)
         --slots N        of the pool (40 to 110, drawn from the seed)
         --slot-blocks N  of a slot (32, 64 or 128)
         --no-faults      the device never fails
         --sparse         a sparse file on a file system without space for all of it
         --no-damage      no bit rot at the end
         --broken NAME    with a behaviour broken on purpose
         --reference      the simulator's own little store instead of the real one
";

/// What the command line asks for.
#[derive(Debug)]
struct Asked {
    command: String,
    name: Option<String>,
    seeds: Range<u64>,
    seed: Option<u64>,
    jobs: u64,
    stride: usize,
    is_traced: bool,
    is_reference: bool,
    options: Options,
}

fn main() -> ExitCode {
    let asked = match parse(std::env::args().skip(1)) {
        Ok(asked) => asked,
        Err(error) => {
            eprintln!("{error}\n\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let is_good = if asked.is_reference {
        serve::<Reference>(&asked, &BUGS)
    } else {
        serve::<Pool>(&asked, BROKEN)
    };
    if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn parse(mut words: impl Iterator<Item = String>) -> Result<Asked, String> {
    let command = words.next().ok_or("what is to be done?")?;
    let mut asked = Asked {
        command,
        name: None,
        seeds: 1..501,
        seed: None,
        jobs: std::thread::available_parallelism().map_or(1, |count| count.get() as u64),
        stride: 1,
        is_traced: false,
        is_reference: false,
        options: Options::default(),
    };
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or(format!("{word} wants a value"));
        match word.as_str() {
            "--seeds" => asked.seeds = range(&value()?)?,
            "--seed" => asked.seed = Some(number(&value()?)?),
            "--jobs" => asked.jobs = number(&value()?)?.max(1),
            "--stride" => asked.stride = number(&value()?)?.max(1) as usize,
            "--operations" => asked.options.operations = number(&value()?)?,
            "--broken" => asked.options.broken = Some(value()?),
            "--slots" => asked.options.slots = Some(number(&value()?)?),
            "--slot-blocks" => asked.options.slot_blocks = Some(number(&value()?)?),
            "--no-faults" => asked.options.faults = false,
            "--no-damage" => asked.options.damage = false,
            "--sparse" => asked.options.sparse = true,
            "--trace" => asked.is_traced = true,
            "--reference" => asked.is_reference = true,
            name if !name.starts_with('-') && asked.name.is_none() => asked.name = Some(word),
            other => return Err(format!("{other} is not known")),
        }
    }
    Ok(asked)
}

fn number(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("{text} is not a number"))
}

fn range(text: &str) -> Result<Range<u64>, String> {
    let (first, end) = text.split_once("..").ok_or(format!("{text} is not like 1..501"))?;
    Ok(number(first)?..number(end)?)
}

fn serve<S: Subject>(asked: &Asked, broken: &[&str]) -> bool {
    match (asked.command.as_str(), asked.seed) {
        ("run", Some(seed)) => one::<S>(seed, asked),
        ("run", None) => many::<S>(asked),
        ("broken", _) => every_broken::<S>(asked, broken),
        ("explore", _) => prefixes::<S>(asked),
        (other, _) => {
            eprintln!("{other} is not known\n\n{USAGE}");
            false
        }
    }
}

fn one<S: Subject>(seed: u64, asked: &Asked) -> bool {
    let mut sink = |line: &str| println!("{line}");
    let sink: Option<&mut dyn FnMut(&str)> = if asked.is_traced { Some(&mut sink) } else { None };
    let outcome = run_seed::<S>(seed, &asked.options, sink);
    print_coverage(&outcome.coverage);
    match outcome.violation {
        None => println!("seed {seed}: every promise was kept"),
        Some(ref violation) => println!("seed {seed}: BROKEN: {violation}"),
    }
    outcome.violation.is_none()
}

fn many<S: Subject>(asked: &Asked) -> bool {
    let start = Instant::now();
    let mut report = Report::default();
    std::thread::scope(|scope| {
        let jobs: Vec<_> = (0..asked.jobs)
            .map(|job| {
                let seeds = asked.seeds.clone().filter(move |seed| seed % asked.jobs == job);
                scope.spawn(move || run_seeds::<S>(seeds, &asked.options))
            })
            .collect();
        for job in jobs {
            match job.join() {
                Ok(part) => report.merge(part),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
    });
    print_coverage(&report.coverage);
    for (seed, violation) in &report.failed {
        println!("seed {seed}: BROKEN: {violation}");
    }
    let missing = report.missing::<S>(&asked.options);
    for name in &missing {
        println!("never reached: {name}");
    }
    let minutes = start.elapsed().as_secs_f64() / 60.0;
    let is_good = report.failed.is_empty() && missing.is_empty();
    println!(
        "{}: {} seeds of {} operations, {} broken, {} kinds of event never reached, {:.0} seeds a \
         minute",
        if is_good { "PASS" } else { "FAIL" },
        report.seeds,
        asked.options.operations,
        report.failed.len(),
        missing.len(),
        report.seeds as f64 / minutes
    );
    is_good
}

fn every_broken<S: Subject>(asked: &Asked, all: &[&str]) -> bool {
    let name = asked.name.as_deref().unwrap_or("all");
    let names: Vec<&str> = if name == "all" { all.to_vec() } else { vec![name] };
    let mut missed = 0;
    for name in &names {
        match find::<S>(name, asked.seeds.clone(), &asked.options) {
            Some((seed, violation)) => println!("{name:<28} found by seed {seed}: {violation}"),
            None => {
                missed += 1;
                println!("{name:<28} NOT FOUND by seeds {:?}", asked.seeds);
            }
        }
    }
    println!(
        "{}: {missed} of {} not found",
        if missed == 0 { "PASS" } else { "FAIL" },
        names.len()
    );
    missed == 0
}

fn prefixes<S: Subject>(asked: &Asked) -> bool {
    let broken = asked.options.broken.clone();
    let what = Exploration { stride: asked.stride, broken, ..Exploration::default() };
    let mut coverage = Coverage::default();
    for seed in asked.seeds.clone() {
        match explore::<S>(seed, &what) {
            Ok(reached) => coverage.merge(&reached),
            Err(violation) => {
                println!("FAIL: seed {seed}: {violation}");
                return false;
            }
        }
    }
    print_coverage(&coverage);
    println!("PASS: {} prefixes adopted", coverage.count("prefixes adopted"));
    true
}

fn print_coverage(coverage: &Coverage) {
    for (name, count) in coverage.iter() {
        println!("{name:<44} {count:>14}");
    }
}
