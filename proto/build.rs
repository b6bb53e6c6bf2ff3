//! Compiles the .proto files with protox (pure Rust, no protoc), generates messages and services, the
//! proto3 JSON mapping of the public API, and a descriptor set for reflection.
#[path = "build/redacted.rs"]
mod redacted;

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message as _;

const FILES: [&str; 13] = [
    "securegateway/v1/acls.proto",
    "securegateway/v1/audit.proto",
    "securegateway/v1/authority.proto",
    "securegateway/v1/clients.proto",
    "securegateway/v1/destinations.proto",
    "securegateway/v1/ends.proto",
    "securegateway/v1/gateways.proto",
    "securegateway/v1/nodes.proto",
    "securegateway/v1/system.proto",
    "securegateway/v1/tokens.proto",
    "securegateway/node/v1/node.proto",
    "securegateway/store/v1/store.proto",
    "securegateway/tunnel/v1/tunnel.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=securegateway");
    println!("cargo::rerun-if-changed=build");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let mut compiler = protox::Compiler::new(["."])?;
    compiler.include_imports(true).include_source_info(true);
    compiler.open_files(FILES)?;
    let encoded = compiler.encode_file_descriptor_set();
    fs::write(out.join("descriptors.bin"), &encoded)?;
    let descriptors = prost_types::FileDescriptorSet::decode(encoded.as_slice())?;
    let redacted = redacted::of(&descriptors);
    fs::write(out.join("redacted.rs"), redacted.code)?;
    fs::write(out.join("debug_table.rs"), redacted.table)?;

    tonic_prost_build::configure()
        .compile_well_known_types(true)
        .skip_debug(&redacted.messages)
        .extern_path(".google.protobuf", "::pbjson_types")
        .compile_fds(descriptors)?;
    pbjson_build::Builder::new()
        .register_descriptors(&encoded)?
        .emit_fields()
        .build(&[".securegateway.v1"])?;
    Ok(())
}
