//! fio, which remembers what it wrote, and many idle clients.

use bowline_testbed::nbd::Client;
use bowline_testbed::server::Transport;

use crate::{Bed, over_each_transport, run};

over_each_transport! {
    fio_verifies_random_writes
    fio_verifies_mixed_sizes
    fio_verifies_four_writers_that_flush
    two_hundred_idle_clients_and_one_that_works
}

fn fio(bed: &Bed, arguments: &[&str]) {
    let uri = format!("--uri={}", bed.uri);
    let common = [
        "--name=j",
        "--ioengine=nbd",
        &uri,
        "--verify=crc32c",
        "--verify_fatal=1",
        "--group_reporting",
        "--output=/dev/stderr",
        "--thread",
    ];
    let folder = bed.server.folder().display().to_string();
    run("fio", &[&common[..], &[&format!("--aux-path={folder}")], arguments].concat());
}

fn fio_verifies_random_writes(bed: &Bed) {
    fio(bed, &["--rw=randwrite", "--bs=4k", "--iodepth=32", "--size=48M"]);
}

fn fio_verifies_mixed_sizes(bed: &Bed) {
    let mixed = ["--rw=randrw", "--bsrange=512-128k", "--blockalign=512", "--iodepth=16"];
    fio(bed, &[&mixed[..], &["--size=32M"]].concat());
}

fn fio_verifies_four_writers_that_flush(bed: &Bed) {
    fio(
        bed,
        &[
            "--rw=randwrite",
            "--bs=8k",
            "--iodepth=4",
            "--numjobs=4",
            "--size=8M",
            "--offset_increment=8M",
            "--fsync=8",
        ],
    );
}

fn two_hundred_idle_clients_and_one_that_works(bed: &Bed) {
    let is_unix = bed.uri.starts_with("nbd+unix");
    let address = bed.server.address(if is_unix { Transport::Unix } else { Transport::Tcp }, 0);
    // Peers take fewer; the number is what one of them takes by its settings.
    let count = if bed.server.kind() == bowline_testbed::server::Kind::Bowline { 200 } else { 40 };
    let export = bed.server.export(0);
    let idle: Vec<Client> =
        (0..count).map(|_| Client::connect(&address, export).unwrap()).collect();
    let mut worker = Client::connect(&address, export).unwrap();
    for at in 0..64u64 {
        worker.write(at << 16, &vec![at as u8; 1 << 16]).unwrap();
    }
    worker.flush().unwrap();
    for (at, mut client) in idle.into_iter().enumerate() {
        let at = at as u64 % 64;
        assert_eq!(client.read(at << 16, 4096).unwrap(), vec![at as u8; 4096]);
        client.disconnect();
    }
}
