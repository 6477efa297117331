//! Prints the script of a target's input: `cargo run --example show client
//! fuzz/artifacts/client/crash-...`

use nbd_check::fuzz::{ClientScript, ServerScript};
use nbd_codec_fuzz::{client, format, pair, server, steps};

fn main() {
    let mut args = std::env::args().skip(1);
    let (Some(target), Some(file)) = (args.next(), args.next()) else {
        eprintln!("usage: show TARGET FILE");
        std::process::exit(2);
    };
    let bytes = std::fs::read(&file).expect("a readable file");
    match target.as_str() {
        "client" | "client_split" | "differential" => {
            println!("{:#?}", format::read::<client::Run>(&bytes));
        }
        "server" | "server_split" | "differential_server" => {
            println!("{:#?}", format::read::<server::Run>(&bytes));
        }
        "step" => println!("{:#?}", format::read::<steps::Run>(&bytes)),
        "pair" => println!("{:#?}", format::read::<pair::script::Script>(&bytes)),
        "kit_server" => println!("{:#?}", format::read::<ServerScript>(&bytes)),
        "kit_client" => println!("{:#?}", format::read::<ClientScript>(&bytes)),
        _ => eprintln!("inputs of {target} are not scripts"),
    }
}
