//! `bowline disk ...`

use clap::{Args, Subcommand};
use std::time::Duration;

use super::serve::Switch;
use super::{Context, Outcome, ask, output, usage};
use crate::control::api::{
    DiskChange, DiskCreate, DiskList, DiskStatus, Durability, Problem, Provision,
};
use crate::control::client::Method;
use crate::control::service::disk_name;
use crate::size::{self, Size};

#[derive(Debug, Subcommand)]
pub enum Disk {
    /// Make a disk; it can be used at once
    Create(Create),
    /// All disks, one a line
    ///
    /// MAPPED is the data a disk held at the last checkpoint of the pool, zeros and holes not
    /// counted. What was written since follows behind a plus: new blocks, or others in their place,
    /// which only the next checkpoint tells apart. `-` where nobody counted.
    List,
    /// Everything about one disk
    ///
    /// See `disk list` for what is mapped.
    Show(Name),
    /// Give a disk another size while it is in use
    Resize(Resize),
    /// Change what a flush means, or whether writes are taken
    Set(Set),
    /// Destroy a disk and everything on it
    Destroy(Destroy),
}

#[derive(Debug, Args)]
pub struct Name {
    /// The disk
    name: String,
}

#[derive(Debug, Args)]
pub struct Create {
    /// Its name: letters, digits, `.`, `_`, `-`; clients use it as the name of the export
    name: String,
    /// Its size
    #[arg(long)]
    size: Size,
    /// What a flush means
    #[arg(long, value_enum, default_value = "strict")]
    durability: Durability,
    /// When its space is taken (lazy and eager are not known to this version: refused)
    #[arg(long, value_enum, default_value = "thin")]
    provision: Provision,
}

#[derive(Debug, Args)]
pub struct Resize {
    /// The disk
    name: String,
    /// Its new size
    #[arg(long)]
    size: Size,
    /// Make it smaller: what is past the new end is lost
    #[arg(long)]
    shrink: bool,
}

#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("change").required(true).multiple(true)))]
pub struct Set {
    /// The disk
    name: String,
    /// What a flush means
    #[arg(long, value_enum, group = "change")]
    durability: Option<Durability>,
    /// Whether writes are refused
    #[arg(long, value_name = "on|off", group = "change", hide_possible_values = true)]
    read_only: Option<Switch>,
    /// How old an unflushed write may get in `ordered`
    #[arg(long, value_name = "TIME", group = "change", value_parser = size::duration)]
    max_loss: Option<Duration>,
    /// How many bytes may be unflushed in `ordered`
    #[arg(long, value_name = "SIZE", group = "change")]
    max_loss_bytes: Option<Size>,
}

#[derive(Debug, Args)]
pub struct Destroy {
    /// The disk
    name: String,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

impl Disk {
    pub fn run(self, context: &Context) -> Result<Outcome, Problem> {
        match self {
            Disk::List => list(context),
            Disk::Destroy(destroy) => destroy.run(context),
            Disk::Create(create) => create.run(context),
            Disk::Show(Name { name }) => {
                let disk: DiskStatus = context.client.get(&path(&name)?)?;
                output::answer(context.json, disk, words)?;
                Ok(Outcome::Well)
            }
            Disk::Resize(resize) => {
                let order = DiskChange {
                    size_bytes: Some(resize.size.0),
                    shrink: resize.shrink,
                    ..DiskChange::default()
                };
                change(context, &resize.name, &order)
            }
            Disk::Set(set) => {
                let order = DiskChange {
                    durability: set.durability,
                    read_only: set.read_only.map(|switch| switch == Switch::On),
                    max_loss_ms: set.max_loss.map(|time| time.as_millis() as u64),
                    max_loss_bytes: set.max_loss_bytes.map(|size| size.0),
                    ..DiskChange::default()
                };
                change(context, &set.name, &order)
            }
        }
    }
}

fn path(name: &str) -> Result<String, Problem> {
    disk_name(name)?;
    Ok(format!("/v1/disks/{name}"))
}

fn change(context: &Context, name: &str, order: &DiskChange) -> Result<Outcome, Problem> {
    let disk: DiskStatus = context.client.request(Method::Patch, &path(name)?, order)?;
    output::answer(context.json, disk, words)?;
    Ok(Outcome::Well)
}

fn list(context: &Context) -> Result<Outcome, Problem> {
    let list: DiskList = context.client.get("/v1/disks")?;
    output::answer(context.json, list, |list| table(&list.disks))?;
    Ok(Outcome::Well)
}

/// How much a disk holds: counted at the last checkpoint, and what was written since.
fn mapped(disk: &DiskStatus) -> String {
    let counted = disk.mapped_bytes.map_or_else(|| "-".into(), |bytes| Size(bytes).to_string());
    match disk.changed_bytes {
        0 => counted,
        changed => format!("{counted} + {}", Size(changed)),
    }
}

/// The disks, one a line.
pub fn table(disks: &[DiskStatus]) -> String {
    let row = |disk: &DiskStatus| {
        let mut durability = word(disk.durability).to_string();
        if disk.read_only {
            durability.push_str(", read-only");
        }
        vec![
            disk.name.clone(),
            Size(disk.size_bytes).to_string(),
            mapped(disk),
            durability,
            disk.connections.to_string(),
            disk.uris.first().cloned().unwrap_or_default(),
        ]
    };
    let rows: Vec<Vec<String>> = disks.iter().map(row).collect();
    output::table(&["DISK", "SIZE", "MAPPED", "DURABILITY", "CLIENTS", "URI"], &rows, &[1, 2, 4])
}

fn word(durability: Durability) -> &'static str {
    match durability {
        Durability::Strict => "strict",
        Durability::Hinted => "hinted",
        Durability::Ordered => "ordered",
        Durability::Sync => "sync",
    }
}

fn words(disk: &DiskStatus) -> String {
    let (loss, counters) = (&disk.loss, &disk.counters);
    let mut fields = vec![
        ("disk", disk.name.clone()),
        ("size", Size(disk.size_bytes).to_string()),
        ("mapped", mapped(disk)),
        ("durability", word(disk.durability).into()),
        ("writes", if disk.read_only { "refused" } else { "taken" }.into()),
        ("clients", disk.connections.to_string()),
    ];
    let mut unflushed =
        format!("{}, the oldest {} ms old", Size(loss.unflushed_bytes), loss.unflushed_age_ms);
    if disk.durability == Durability::Ordered {
        let most = Size(loss.max_loss_bytes);
        unflushed.push_str(&format!(" (at most {most}, {} ms)", loss.max_loss_ms));
    }
    fields.push(("unflushed", unflushed));
    let done = |operations: u64, bytes: u64| format!("{operations}, {}", Size(bytes));
    fields.push(("reads", done(counters.read_operations, counters.read_bytes)));
    fields.push(("written", done(counters.write_operations, counters.write_bytes)));
    fields.push(("discards", done(counters.discard_operations, counters.discard_bytes)));
    fields.push(("zeroings", done(counters.zero_operations, counters.zero_bytes)));
    fields.push(("flushes", counters.flush_operations.to_string()));
    fields.push(("errors", counters.error_operations.to_string()));
    for uri in &disk.uris {
        fields.push(("uri", uri.clone()));
    }
    output::fields(&fields)
}

impl Create {
    fn run(self, context: &Context) -> Result<Outcome, Problem> {
        disk_name(&self.name)?;
        if self.size.0 == 0 || !self.size.0.is_multiple_of(512) {
            let what = format!("{} bytes is no size for a disk", self.size.0);
            return Err(usage(what).next("use a multiple of 512 bytes"));
        }
        let order = DiskCreate {
            name: self.name,
            size_bytes: self.size.0,
            durability: self.durability,
            provision: self.provision,
        };
        let disk: DiskStatus = context.client.request(Method::Post, "/v1/disks", &order)?;
        output::answer(context.json, disk, words)?;
        Ok(Outcome::Well)
    }
}

impl Destroy {
    fn run(self, context: &Context) -> Result<Outcome, Problem> {
        let path = path(&self.name)?;
        let disk: DiskStatus = context.client.get(&path)?;
        let what = format!(
            "disk {} ({}, mapped: {}, {} clients connected) and everything on it is destroyed",
            disk.name,
            Size(disk.size_bytes),
            mapped(&disk),
            disk.connections
        );
        ask::typed(&what, &self.name, self.yes)?;
        let nothing = serde_json::Map::new();
        let disk: DiskStatus = context.client.request(Method::Delete, &path, &nothing)?;
        output::answer(context.json, disk, |disk| format!("disk {} is destroyed\n", disk.name))?;
        Ok(Outcome::Well)
    }
}
