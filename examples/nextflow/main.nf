// Predict a cohort in parts, then collect it:
//
//     nextflow run main.nf --slides slides.csv --model mymodel --out predicted --shards 4
//
// Each part is `stpred predict --shard i/n` into one folder, which resumes by itself, so that nothing is staged. A slide
// that fails ends no process (exit status 3); the page that is collected lists it.

params.slides = 'slides.csv'
params.model = 'default'
params.out = 'predicted'
params.shards = 4

process PREDICT {
    input:
    val shard
    val slides
    val out

    output:
    val shard

    script:
    """
    OMP_NUM_THREADS=1 stpred predict '${slides}' -o '${out}' --model '${params.model}' --workers ${task.cpus} \
        --shard ${shard}/${params.shards} --skip-errors || [ \$? -eq 3 ]
    """
}

process COLLECT {
    publishDir "${params.out}.collected", mode: 'copy'

    input:
    val shards
    val out

    output:
    path 'cohort.h5ad'
    path 'cohort.html'

    script:
    """
    stpred collect '${out}' -o cohort.h5ad --page cohort.html
    """
}

workflow {
    slides = file(params.slides).toAbsolutePath()
    out = file(params.out).toAbsolutePath()
    PREDICT(channel.of(1..(params.shards as Integer)), slides, out)
    COLLECT(PREDICT.out.collect(), out)
}
