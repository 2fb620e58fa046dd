# bash completion for realpeer
# Generated from the definitions of the flags by tests/manual.
_realpeer() {
    local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD - 1]} words=
    # Values of flags.
    case ${previous/#--/-} in
    -p | -protocol) words='tcp udp' ;;
    -untrusted) words='refuse serve' ;;
    -source-port) words='keep any strict' ;;
    -udp-header) words='every first spp' ;;
    -routing-mode) words='auto loopback mark socket udp-port' ;;
    -routing) words='auto off' ;;
    -log-format) words='json text journal' ;;
    -as) words='table commands' ;;
    -allowed-subnets | -a | -allowed-networks | -denied-clients | -allowed-clients | -docker-socket | -control | -crowdsec-key-file | -config | -token-file)
        mapfile -t COMPREPLY < <(compgen -f -- "$current")
        return
        ;;
    -state-dir)
        mapfile -t COMPREPLY < <(compgen -d -- "$current")
        return
        ;;
    -l | -listen-addr | -4 | -ipv4 | -6 | -ipv6 | -mark | -m | -allow-claims | -listeners | -max-connections | -max-connections-per-client | -connection-rate-per-client | -header-timeout | -connect-timeout | -idle-timeout | -keepalive | -close-after | -c | -max-flows | -target-netns | -workers | -drain-timeout | -upgrade-drain | -name | -control-group | -v | -metrics | -user | -sandbox | -crowdsec-url | -backend | -from | -listen | -for | -reason | -listener | -origin | -exec | -rate | -ban-time)
        return
        ;;
    esac
    # A command stands first, and its action right behind it.
    if [ -z "$words" ]; then
        case ${COMP_WORDS[1]} in
        setup)
            words='-backend -from -listen -p -protocol -udp-header -name -yes -undo'
            ;;
        routing)
            words='-l -listen-addr -4 -ipv4 -6 -ipv6 -dynamic-destination -p -protocol -mark -m -allowed-subnets -a -allowed-networks -allow-claims -untrusted -denied-clients -allowed-clients -listeners -listen-transparent -max-connections -max-connections-per-client -connection-rate-per-client -source-port -header-timeout -connect-timeout -idle-timeout -keepalive -close-after -c -udp-header -max-flows -routing-mode -target-netns -docker-socket -workers -drain-timeout -upgrade-drain -routing -name -control -control-group -state-dir -v -log-format -metrics -user -sandbox -crowdsec-url -crowdsec-key-file -config -version -as'
            ((COMP_CWORD == 2)) && words+=' up down show'
            ;;
        doctor)
            words='-l -listen-addr -4 -ipv4 -6 -ipv6 -dynamic-destination -p -protocol -mark -m -allowed-subnets -a -allowed-networks -allow-claims -untrusted -denied-clients -allowed-clients -listeners -listen-transparent -max-connections -max-connections-per-client -connection-rate-per-client -source-port -header-timeout -connect-timeout -idle-timeout -keepalive -close-after -c -udp-header -max-flows -routing-mode -target-netns -docker-socket -workers -drain-timeout -upgrade-drain -routing -name -control -control-group -state-dir -v -log-format -metrics -user -sandbox -crowdsec-url -crowdsec-key-file -config -version -json -from -probe-remote'
            ;;
        ctl)
            words='-control -name -json -for -reason -listener -origin -force'
            ((COMP_CWORD == 2)) && words+=' status connections kill ban unban bans drain resume reload upgrade log watch top'
            ;;
        config)
            words='-control -name'
            ((COMP_CWORD == 2)) && words+=' check show from-flags'
            ;;
        ban-relay)
            words='-l -listen-addr -token-file -allowed-subnets -a -exec -rate -ban-time -state-dir'
            ;;
        demo)
            words=''
            ;;
        version)
            words=''
            ;;
        help)
            words=''
            ((COMP_CWORD == 2)) && words+=' routing headers containers migrate bans setup doctor ctl config ban-relay demo version'
            ;;
        *) words='-l -listen-addr -4 -ipv4 -6 -ipv6 -dynamic-destination -p -protocol -mark -m -allowed-subnets -a -allowed-networks -allow-claims -untrusted -denied-clients -allowed-clients -listeners -listen-transparent -max-connections -max-connections-per-client -connection-rate-per-client -source-port -header-timeout -connect-timeout -idle-timeout -keepalive -close-after -c -udp-header -max-flows -routing-mode -target-netns -docker-socket -workers -drain-timeout -upgrade-drain -routing -name -control -control-group -state-dir -v -log-format -metrics -user -sandbox -crowdsec-url -crowdsec-key-file -config -version' ;;
        esac
        ((COMP_CWORD == 1)) && words+=' setup routing doctor ctl config ban-relay demo version help'
    fi
    if [[ ${COMP_WORDS[1]} == config && $previous == @(check|show) && $current != -* ]]; then
        mapfile -t COMPREPLY < <(compgen -f -- "$current")
        return
    fi
    # Two dashes mean the same as one.
    [[ $current == --* ]] && words=" $words" && words=${words// -/ --}
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$current")
}
complete -o filenames -F _realpeer realpeer
