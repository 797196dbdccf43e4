# ac-session in the fish shell: the session server in development, in this terminal, with TLS as classic pages need it.
# Replaces the function of the same name in .devcontainer/config.fish: source this file there.
#
#     set -U SESSION_SERVER_HOME ~/session-server     # a clone of session-server, after `make setup`
#     ac-session                                      # its example pieces; or: ac-session my/pieces --lan
#
# The same in each terminal, Emacs's too: it stays in the foreground, logs appear here, Ctrl+C stops it. Nothing is
# killed by name: an ac-session of yours that is still on the port is asked to stop, anything else is named and left.

function ac-session --description "Session server on port 8889, reloading pieces as they are saved"
    set -q SESSION_SERVER_HOME; or set -l SESSION_SERVER_HOME ~/session-server
    set -l program $SESSION_SERVER_HOME/.venv/bin/ac-session
    if not test -x $program
        echo "ac-session: no $program; set SESSION_SERVER_HOME to a clone of session-server and run 'make setup' in it" >&2
        return 2
    end
    set -q SESSION_SERVER_PIECES; or set -lx SESSION_SERVER_PIECES $SESSION_SERVER_HOME/pieces
    set -q SESSION_SERVER_TLS; or set -q SESSION_SERVER_TLS_CERT; or set -lx SESSION_SERVER_TLS self-signed
    $program $argv
end
