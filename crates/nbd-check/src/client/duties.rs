//! The duties that only a client has.

use crate::duty::duties;

duties! {
    /// Every duty that only a client has, in the order of the specification. Those of
    /// both sides are in [`DUTIES`](crate::DUTIES). Ids that begin with X are mistakes
    /// that clients have made; their sections are those of the rule that was broken.
    CLIENT_DUTIES:
    "Newstyle negotiation" {
        "H5" Should "A client ignores handshake flags that it does not know."
        "X14" Must "A client checks the magic numbers of what it receives."
    }
    "Fixed newstyle negotiation" {
        "H8" Should "A client agrees to fixed newstyle if it is offered."
        "H9" Must "A client waits for the final reply to its option, and takes no other for it."
        "H10" Should "An option that changes the state is sent once."
    }
    "Termination of the session during option haggling" {
        "H15" Must "A client ends option haggling by ABORT, but for violations and failed TLS."
        "H19" Must "On ERR_SHUTDOWN a client disconnects by ABORT."
    }
    "Transmission" {
        "T3" Must "The cookie of a request differs from those of all requests in flight."
        "T5" Must "A reply is matched with its request by the cookie."
    }
    "Request message" {
        "T9" Must "A compact request has no PAYLOAD_LEN."
        "T11" Must "A request with a payload, with extended headers, has PAYLOAD_LEN."
    }
    "Simple reply message" {
        "T17" Must "With extended headers a simple reply is a violation."
    }
    "Structured reply chunk message" {
        "T20" Must "A chunk is a violation where none were negotiated."
        "T23" Must "With structured replies, a simple reply to READ is a violation."
    }
    "Extended reply chunk message" {
        "T30" Must "An extended reply with another offset than its request is a violation."
    }
    "Terminating the transmission phase" {
        "T36" Must "On ESHUTDOWN a client disconnects by DISC."
        "T37" Should "A client sends DISC when no request is in flight."
        "X3" Must "Whatever the server sends, and whenever it closes: no crash, no hang."
    }
    "TLS support" {
        "L24" Must "STARTTLS needs fixed newstyle on both sides."
        "L25" Must "STARTTLS is not sent under TLS."
        "L27" Must "A client whose options are refused for lack of TLS ends the session or starts TLS."
    }
    "Size constraints" {
        "S4" Must "A client that requested the block sizes keeps to them."
        "S6" Must "Without advertised sizes no payload exceeds 32 MiB."
        "S11" Must "An impossible minimum block size is a violation."
        "S14" Must "An impossible preferred block size is a violation."
        "S18" Should "A payload of up to 32 MiB is not considered a denial of service attack."
        "S19" Must "No WRITE, and no READ with simple replies, exceeds the maximum payload."
        "S22" Must "Offset and length are multiples of the minimum block size."
        "S24" Must "No request exceeds the end of the export."
        "B12" Should "A client requests the block sizes."
    }
    "Metadata querying" {
        "M3" Must "Block status succeeds with one chunk for each requested context."
        "M4" Must "BLOCK_STATUS is sent with a context selected for this export."
        "M7" Must "A simple reply of success to BLOCK_STATUS is a violation."
        "M8" Must "Structured replies or extended headers are negotiated before contexts."
    }
    "base:allocation metadata context" {
        "M19" Must "A client ignores flags of base:allocation that it does not know."
    }
    "Handshake flags" {
        "O3" Must "Zeroes follow the reply to EXPORT_NAME without NO_ZEROES on both sides only."
    }
    "Client flags" {
        "O8" Must "C_NO_ZEROES is not set unless the server has NO_ZEROES."
        "O10" Must "No other client flag is set."
    }
    "Transmission flags" {
        "O13" Must "A client uses nothing that is not advertised."
        "O19" Should "Without CAN_MULTI_CONN a client has one connection."
        "O24" Should "A client ignores transmission flags that it does not know."
    }
    "Option types" {
        "O27" Should "GO comes first; EXPORT_NAME is for servers without GO."
        "O28" Must "EXPORT_NAME is not sent with extended headers."
        "O31" Should "ABORT has no data."
        "O35" Must "LIST has no data."
        "O37" Must "STARTTLS has no data."
        "O42" Must "The name of the export is within the data of INFO and GO."
        "O44" Must "No information is requested twice."
        "O47" Must "A client ignores information that it does not know or did not request."
        "O49" Must "Success of INFO and GO without NBD_INFO_EXPORT is a violation."
        "O56" Should "If GO is not supported, a client falls back to EXPORT_NAME."
        "O60" Must "A client waits for no zeroes after GO."
        "O62" Must "STRUCTURED_REPLY has no data."
        "O65" Should "If structured replies are not supported, a client uses simple ones."
        "O69" Must "LIST_META_CONTEXT comes after structured replies or extended headers."
        "O72" Must "A query to list contexts begins with a namespace and a colon."
        "O85" Must "Contexts are selected after structured replies or extended headers."
        "O91" Must "A query to select contexts begins with a namespace and a colon."
        "O95" Must "The id of a selected context twice is a violation."
        "O96" Must "The id of a context is opaque."
        "O97" Must "EXTENDED_HEADERS has no data."
        "O104" Must "What needs extended headers is not used without them."
        "O105" Must "Every request has the magic number and the size of the framing."
        "O108" Should "If extended headers are not supported, a client uses compact ones."
    }
    "Option reply types" {
        "O111" Must "A reply whose lengths contradict each other ends the session."
        "O114" Must "A client relies on no order of information."
    }
    "Command flags" {
        "R1" Must "A command has no flag but its own."
        "R8" Must "DF is not sent unless SEND_DF is advertised."
        "R11" Must "FAST_ZERO is not sent unless SEND_FAST_ZERO is advertised."
    }
    "Structured and extended header reply flags" {
        "R16" Must "NBD_REPLY_TYPE_NONE without DONE is a violation."
        "R18" Must "A client ignores reply flags that it does not know."
    }
    "Structured reply types" {
        "R19" Must "A chunk of an unknown or unexpected type ends the session."
        "R22" Must "NBD_REPLY_TYPE_NONE with a payload ends the session."
        "R25" Must "NBD_REPLY_TYPE_OFFSET_DATA without data ends the session."
        "R27" Must "Data outside the request is a violation."
        "R29" Undefined "On content that overlaps a client may disconnect."
        "R31" Must "NBD_REPLY_TYPE_OFFSET_HOLE of another length than 12 ends the session."
        "R33" Must "A hole outside the request is a violation."
        "R35" Must "An empty hole ends the session."
        "R38" Must "NBD_REPLY_TYPE_BLOCK_STATUS of an impossible length ends the session."
        "R42" Must "The length of an extent is not zero."
        "R44" Must "With REQ_ONE a second extent, or a longer one, is a violation."
        "R46" Must "An extent that begins past the end of the request is a violation."
        "R48" Should "A chunk of more than 2^20 extents may be refused."
        "R50" Must "NBD_REPLY_TYPE_BLOCK_STATUS_EXT of an impossible length ends the session."
        "R52" Must "NBD_REPLY_TYPE_BLOCK_STATUS_EXT without extended headers ends the session."
        "R54" Must "Another number of extents than the payload has ends the session."
        "R60" Must "NBD_REPLY_TYPE_BLOCK_STATUS with extended headers ends the session."
        "R62" Must "More than 32 bits of status in a context of 32 bits is a violation."
        "R64" Must "NBD_REPLY_TYPE_ERROR that is too short is no success."
        "R68" Must "An error chunk with the error zero is no success."
        "R70" Must "NBD_REPLY_TYPE_ERROR_OFFSET that is too short is no success."
        "R72" Must "An error offset outside the request is no success."
        "R76" Must "An unknown type of error chunk is an error."
        "R77" Must "An error message that does not fit in its chunk is no success."
    }
    "NBD_CMD_READ" {
        "R79" Should "No READ has length 0."
        "R91" Must "Content chunks come in any order."
        "R94" Undefined "On a READ that succeeds without all of its data a client may disconnect."
        "R99" Must "A READ with an error, before, after or between its data, is no success."
        "R103" Must "With DF a second content chunk is a violation."
        "X7" Must "Success is not reported for data that never came."
    }
    "NBD_CMD_WRITE" {
        "R107" Must "A command that the server refused is no success."
        "R108" Should "No WRITE has length 0."
    }
    "NBD_CMD_DISC" {
        "R113" Must "Nothing is sent after DISC."
        "R114" Must "Offset and length of DISC are zero."
    }
    "NBD_CMD_FLUSH" {
        "R116" Must "FLUSH is not sent unless SEND_FLUSH is advertised."
        "R117" Must "Offset and length of FLUSH are zero."
    }
    "NBD_CMD_TRIM" {
        "R118" Should "No TRIM has length 0."
        "R121" Must "TRIM is not sent unless SEND_TRIM is advertised."
    }
    "NBD_CMD_WRITE_ZEROES" {
        "R125" Should "No WRITE_ZEROES has length 0."
        "R128" Must "WRITE_ZEROES is not sent unless SEND_WRITE_ZEROES is advertised."
    }
    "NBD_CMD_BLOCK_STATUS" {
        "R141" Should "No BLOCK_STATUS has length 0."
        "R146" Must "A block status payload has no unknown and no repeated ids."
        "R147" Must "A block status payload has 8 bytes, and 4 for each id."
        "R153" Should "Adjacent extents of equal status are accepted."
        "R156" Should "Extents that are not aligned are accepted."
    }
}
