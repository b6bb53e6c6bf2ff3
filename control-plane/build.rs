//! Nothing to build: this script exists so that cargo fetches the protobuf compiler packages named
//! under build-dependencies, which tools/protoc hands to etcd-client's own build script.
fn main() {
    println!("cargo::rerun-if-changed=build.rs");
}
