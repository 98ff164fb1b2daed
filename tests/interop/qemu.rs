//! QEMU's tools.

use crate::{Bed, DISK_BYTES, over_each_transport, run};

over_each_transport! {
    qemu_img_knows_the_size
    qemu_img_converts_and_compares
    qemu_img_compare_sees_a_difference
    qemu_img_maps_data_and_holes
    qemu_io_verifies_patterns
    qemu_io_zeroes_and_discards
    qemu_io_flushes
}

fn qemu_img_knows_the_size(bed: &Bed) {
    let info = run("qemu-img", &["info", "--output=json", &bed.uri]);
    let info: serde_json::Value = serde_json::from_str(&info).unwrap();
    assert_eq!(info["virtual-size"], DISK_BYTES);
}

fn qemu_img_converts_and_compares(bed: &Bed) {
    let there = bed.data("there");
    let convert = ["convert", "-n", "-f", "raw", "-O", "raw", "-W", "-m", "8"];
    run("qemu-img", &[&convert[..], &[&there, &bed.uri]].concat());
    run("qemu-img", &["compare", "-f", "raw", "-F", "raw", &there, &bed.uri]);
    let back = bed.file("back.qcow2");
    run("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", &bed.uri, &back]);
    run("qemu-img", &["compare", "-f", "raw", "-F", "qcow2", &there, &back]);
}

fn qemu_img_compare_sees_a_difference(bed: &Bed) {
    let there = bed.data("there");
    run("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", &there, &bed.uri]);
    run("qemu-io", &["-f", "raw", "-c", "write -P 1 33554432 512", &bed.uri]);
    let arguments = ["compare", "-f", "raw", "-F", "raw", &there, &bed.uri];
    let output = bowline_testbed::tool::output("qemu-img", &arguments).unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
}

fn qemu_img_maps_data_and_holes(bed: &Bed) {
    run("qemu-io", &["-f", "raw", "-c", "write -P 7 8M 1M", "-c", "flush", &bed.uri]);
    let map = run("qemu-img", &["map", "-f", "raw", "--output=json", &bed.uri]);
    let map: serde_json::Value = serde_json::from_str(&map).unwrap();
    let data: Vec<(u64, u64)> = map
        .as_array()
        .unwrap()
        .iter()
        .filter(|extent| extent["data"] == true)
        .map(|extent| (extent["start"].as_u64().unwrap(), extent["length"].as_u64().unwrap()))
        .collect();
    assert_eq!(data, [(8 << 20, 1 << 20)], "{map}");
}

fn io(bed: &Bed, commands: &[&str]) {
    let mut arguments = vec!["-f", "raw"];
    for command in commands {
        arguments.extend(["-c", command]);
    }
    arguments.push(&bed.uri);
    let said = run("qemu-io", &arguments);
    assert!(!said.contains("failed") && !said.contains("error"), "{said}");
}

fn qemu_io_verifies_patterns(bed: &Bed) {
    io(
        bed,
        &[
            "write -P 0xaa 0 1M",
            "write -P 0xbb 1M 1M",
            "write -P 0xcc 1047552 2k",
            "read -P 0xaa 0 1047552",
            "read -P 0xcc 1047552 2k",
            "read -P 0xbb 1049600 1047552",
            "aio_write -P 1 4M 64k",
            "aio_write -P 2 5M 64k",
            "aio_flush",
            "read -P 1 4M 64k",
            "read -P 2 5M 64k",
        ],
    );
}

fn qemu_io_zeroes_and_discards(bed: &Bed) {
    io(
        bed,
        &[
            "write -P 0xaa 0 4M",
            "write -z 1M 512k",
            "write -z -u 2M 512k",
            "discard 3M 512k",
            "read -P 0xaa 0 1M",
            "read -P 0 1M 512k",
            "read -P 0xaa 1536k 512k",
            "read -P 0 2M 512k",
            "read -P 0xaa 2560k 512k",
            "read -P 0xaa 3584k 512k",
        ],
    );
}

fn qemu_io_flushes(bed: &Bed) {
    io(bed, &["write -P 3 0 64k", "flush", "write -f -P 4 64k 64k", "read -P 3 0 64k"]);
}
