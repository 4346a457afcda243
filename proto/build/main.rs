//! Compiles the protos without protoc and generates everything that follows from their options.
//!
//! A build script may panic: a proto that cannot be honoured must not build.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod naming;
mod redaction;
mod rules;
mod tables;
mod validation;

use std::path::{Path, PathBuf};
use std::{env, fs, io};

use protox::prost_reflect::DescriptorPool;

/// Messages whose events stay encoded on the server, see `src/wire.rs`.
const MIRRORS: [(&str, &str); 5] = [
    (
        "hub.event_bus.v1.PublishRequest",
        "crate::wire::PublishRequest",
    ),
    (
        "hub.event_bus.v1.PublishStreamRequest",
        "crate::wire::PublishStreamRequest",
    ),
    (
        "hub.event_bus.v1.SubscribeResponse",
        "crate::wire::SubscribeResponse",
    ),
    (
        "hub.event_bus.v1.ConsumeResponse",
        "crate::wire::ConsumeResponse",
    ),
    ("hub.event_bus.v1.PullResponse", "crate::wire::PullResponse"),
];

fn main() {
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap());
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap());
    for dir in ["hub", "envoy", "build"] {
        println!("cargo::rerun-if-changed={}", root.join(dir).display());
    }

    let mut compiler = compile(&root, "hub");
    let pool = compiler.descriptor_pool();
    // Not of the contract: neither described to callers nor called by the rules of its options.
    let envoy = compile(&root, "envoy");
    let envoy_pool = envoy.descriptor_pool();

    for (compiler, pool) in [(&compiler, &pool), (&envoy, &envoy_pool)] {
        generate_messages(compiler, pool).unwrap();
        generate_servers(compiler, &out.join("server")).unwrap();
    }
    let redaction = redaction::generate(&pool) + &redaction::generate(&envoy_pool);
    write(&out, "redaction.rs", redaction);
    write(&out, "validation.rs", validation::generate(&pool, &MIRRORS));
    write(&out, "policies.rs", tables::policies(&pool));
    write(&out, "reasons.rs", tables::reasons(&pool));

    // Only this encoding keeps the extension options, which reflection clients want to see.
    compiler.include_source_info(false);
    fs::write(out.join("hub.binpb"), compiler.encode_file_descriptor_set()).unwrap();
}

/// The protos of a folder, with what they import.
fn compile(root: &Path, folder: &str) -> protox::Compiler {
    let mut files = Vec::new();
    collect_protos(&root.join(folder), &mut files).unwrap();
    files.sort();
    let mut compiler = protox::Compiler::new([root]).unwrap();
    compiler.include_source_info(true).include_imports(true);
    compiler
        .open_files(files)
        .unwrap_or_else(|error| panic!("{error:?}"));
    compiler
}

fn collect_protos(dir: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            collect_protos(&path, files)?;
        } else if path
            .extension()
            .is_some_and(|extension| extension == "proto")
        {
            files.push(path);
        }
    }
    Ok(())
}

/// Messages and clients. Maps are ordered so that equal messages have equal bytes.
fn generate_messages(compiler: &protox::Compiler, pool: &DescriptorPool) -> io::Result<()> {
    tonic_prost_build::configure()
        .build_server(false)
        .build_transport(false)
        .emit_rerun_if_changed(false)
        .bytes(".")
        .btree_map(".")
        .skip_debug(
            redaction::messages(pool)
                .iter()
                .map(|m| format!(".{}", m.full_name())),
        )
        .compile_fds(compiler.file_descriptor_set())
}

/// Servers only, over the messages of the first pass, with validation in the codec.
fn generate_servers(compiler: &protox::Compiler, out: &Path) -> io::Result<()> {
    fs::create_dir_all(out)?;
    let mut builder = tonic_prost_build::configure()
        .build_client(false)
        .build_transport(false)
        .emit_rerun_if_changed(false)
        .generate_default_stubs(true)
        .codec_path("crate::codec::CheckedCodec")
        .extern_path(".hub", "crate::hub")
        .extern_path(".envoy", "crate::envoy")
        .out_dir(out);
    for (message, mirror) in MIRRORS {
        builder = builder.extern_path(format!(".{message}"), mirror);
    }
    builder.compile_fds(compiler.file_descriptor_set())
}

fn write(out: &Path, name: &str, code: String) {
    fs::write(out.join(name), code).unwrap();
}
