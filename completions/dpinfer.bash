# bash completion for dpinfer
_dpinfer() {
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]} command=${COMP_WORDS[1]}
    local open="--devices --backend --library --precision --batch --split --total-batch --broadcast --trust-rows
        --deterministic --isolation --wait --queue-depth --arena-max --provider --provider-option --backend-option --shape --worker
        --worker-memory --no-sandbox --core-dumps
        --cache-dir --no-cache --compile-timeout --slice-timeout --json --verbose --quiet --help"
    if [ "$COMP_CWORD" = 1 ]; then
        mapfile -t COMPREPLY < <(compgen -W "run bench devices inspect compile cache report top --help --version" -- "$cur")
        return
    fi
    case $prev in
    --backend) mapfile -t COMPREPLY < <(compgen -W "tensorrt openvino onnxruntime aoti sim" -- "$cur"); return ;;
    --preprocess) mapfile -t COMPREPLY < <(compgen -W "imagenet clip none" -- "$cur"); return ;;
    --interpolation) mapfile -t COMPREPLY < <(compgen -W "bilinear bicubic" -- "$cur"); return ;;
    --layout) mapfile -t COMPREPLY < <(compgen -W "nchw nhwc" -- "$cur"); return ;;
    --color) mapfile -t COMPREPLY < <(compgen -W "rgb bgr" -- "$cur"); return ;;
    --precision) mapfile -t COMPREPLY < <(compgen -W "model fp32 fp16 bf16" -- "$cur"); return ;;
    --isolation) mapfile -t COMPREPLY < <(compgen -W "process thread strict" -- "$cur"); return ;;
    --wait) mapfile -t COMPREPLY < <(compgen -W "auto block yield spin" -- "$cur"); return ;;
    --mode) mapfile -t COMPREPLY < <(compgen -W "single split split-blocking shard" -- "$cur"); return ;;
    --devices) mapfile -t COMPREPLY < <(compgen -W "auto cpu:all cpu:numa0 cpu:0 sim:0" -- "$cur"); return ;;
    esac
    case $cur in
    -*)
        case $command in
        run) open="$open --input --output --rows --top --labels --accuracy --no-overwrite --restart --no-journal --journal-every --on-bad-row
            --max-bad-rows --max-deaths --events --trace --dry-run
            --preprocess --resize --crop --interpolation --scale --mean --std --layout --color --member --max-pixels
            --max-image-bytes --loader-threads --spool-max" ;;
        bench) open="$open --rows --mode --scaling --repeats --seconds" ;;
        devices) open="--json --help" ;;
        cache) open="--cache-dir --json --help" ;;
        report) open="--output --help" ;;
        top) open="--once --interval --json --help" ;;
        esac
        mapfile -t COMPREPLY < <(compgen -W "$open" -- "$cur")
        ;;
    *)
        if [ "$command" = cache ]; then
            mapfile -t COMPREPLY < <(compgen -W "list clear" -- "$cur")
        else
            mapfile -t COMPREPLY < <(compgen -f -- "$cur")
        fi
        ;;
    esac
}
complete -o filenames -F _dpinfer dpinfer
