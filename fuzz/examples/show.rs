//! Prints the script that an input of a target stands for:
//! `cargo run --example show client fuzz/artifacts/client/crash-...`

use nbd_codec_fuzz::pair::script::Pair;
use nbd_codec_fuzz::script::Run;
use nbd_codec_fuzz::server::script::ServerRun;
use nbd_codec_fuzz::tape;

fn main() {
    let mut args = std::env::args().skip(1);
    let (Some(target), Some(file)) = (args.next(), args.next()) else {
        eprintln!("usage: show TARGET FILE");
        std::process::exit(2);
    };
    let bytes = std::fs::read(&file).expect("a file that can be read");
    match target.as_str() {
        "client" | "client_split" | "differential" => {
            println!("{:#?}", tape::read::<Run>(&bytes));
        }
        "server" | "server_split" | "differential_server" => {
            println!("{:#?}", tape::read::<ServerRun>(&bytes));
        }
        "pair" => println!("{:#?}", tape::read::<Pair>(&bytes)),
        _ => eprintln!("the inputs of {target} are no scripts"),
    }
}
